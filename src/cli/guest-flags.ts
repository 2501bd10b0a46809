import { readFileSync } from 'node:fs'
import { ExecStart } from '../contract/exec.ts'
import { list, text, usageInvalid, yes } from './flags.ts'
import { messageOf } from '../lib/thrown.ts'
import { schemaFlags } from './schema-flags.ts'

/** Flags of everything that runs a command in a guest. */
export const TERMINAL_FLAGS = {
  interactive: yes('Send stdin; without it nothing of stdin is read', { short: 'i' }),
  tty: yes('A terminal in the guest; on a terminal -it is what you get anyway', { short: 't' }),
  noTty: yes('No terminal in the guest', { short: 'T' }),
  stdin: yes('The same as --interactive', { hidden: true }),
} as const

export const ENV_FLAGS = {
  env: list('Variable of the guest\'s environment; without "=VALUE" ours is taken', 'NAME[=VALUE]', { short: 'e' }),
  envFile: list('File of NAME=VALUE lines', 'FILE'),
} as const

/** The flags that say where and as whom a command runs in a guest. */
export const EXEC_FIELDS = schemaFlags(ExecStart, {
  omit: ['argv', 'env', 'tty', 'cols', 'rows', 'stdin'],
  more: {
    cwd: {
      as: 'workdir',
      flag: text("Folder that the command starts in, relative to the workload's own", 'DIR', {
        short: 'w',
        aliases: ['cwd'],
      }),
    },
    user: { short: 'u', placeholder: 'USER' },
    timeout_ms: { help: 'End the command after so long, with code 124' },
  },
})

/** Reads -t, -T or neither as one choice. */
export const ttyChoice = (flags: { readonly tty?: boolean; readonly noTty?: boolean }): { readonly tty?: boolean } =>
  flags.noTty === true ? { tty: false } : flags.tty === undefined ? {} : { tty: flags.tty }

const NAME = /^[^=\0]{1,256}$/

const envLines = (file: string): string[] => {
  let content: string
  try {
    content = readFileSync(file, 'utf8')
  } catch (error) {
    throw usageInvalid({
      reason: `Cannot read the environment file "${file}": ${messageOf(error)}`,
    })
  }
  return content
    .split(/\r?\n/)
    .map((line) => line.trimStart())
    .filter((line) => line !== '' && !line.startsWith('#'))
}

/** Reads the environment from files and flags; flags win. */
export const readEnv = (
  flags: { readonly env?: readonly string[]; readonly envFile?: readonly string[] },
  own: Readonly<Record<string, string | undefined>>,
): Record<string, string> | undefined => {
  const said = [...(flags.envFile ?? []).flatMap(envLines), ...(flags.env ?? [])]
  if (said.length === 0) return undefined
  const env: Record<string, string> = {}
  for (const one of said) {
    const equals = one.indexOf('=')
    const name = equals < 0 ? one : one.slice(0, equals)
    if (!NAME.test(name))
      throw usageInvalid({ reason: `Cannot use the variable "${one}": its name is empty or too long` })
    const value = equals < 0 ? own[name] : one.slice(equals + 1)
    if (value !== undefined) env[name] = value
  }
  return env
}
