import { COMMANDS, type Entry } from './commands.ts'
import { NOUNS, nounOf } from './nouns.ts'
import { flagsOf, GLOBAL_FLAGS, type Command, type Programs } from './command.ts'
import { flagLines, kebab, type Flags } from './flags.ts'

const shown = COMMANDS.filter((entry) => entry.hidden !== true)
const line = (name: string, summary: string): string => `  ${name.padEnd(18)}${summary}`

/** Writes the help of `aerie` alone: every command with one line. */
export const overview = (): string => {
  const short = shown
    .filter((entry) => !entry.names[0].includes(' '))
    .map((entry) => line(entry.names[0], entry.summary))
  const groups = Object.entries(NOUNS).map(([noun, { summary }]) => {
    const verbs = shown
      .flatMap((entry) => entry.names)
      .filter((name) => name.startsWith(`${noun} `))
      .map((name) => name.slice(noun.length + 1))
    return line(noun, `${summary}: ${verbs.join(', ')}`)
  })
  return `aerie runs commands in microVMs.

  aerie run base -- uname -a

Usage: aerie COMMAND [FLAGS] [ARGUMENTS]

Commands:
${short.join('\n')}

Nouns:
${groups.join('\n')}

Flags of every command:
${flagLines(GLOBAL_FLAGS).join('\n')}

"aerie help COMMAND" shows one command, "aerie help --all" all of them.
`
}

/** Writes the help of a noun: its verbs, a line each. */
export const groupHelp = (noun: string): string =>
  `${nounOf(noun)?.summary ?? noun}\n\n${shown.flatMap((entry) => entry.names.filter((name) => name.startsWith(`${noun} `)).map((name) => line(name, entry.summary))).join('\n')}\n`

/** Writes the help of one command: usage, flags, examples. */
export const commandHelp = (entry: Entry, command: Command, its: Flags): string => {
  const others = [...entry.names.slice(1), ...(entry.also ?? [])].map((name) => `aerie ${name}`)
  const flags = flagLines(its)
  const everywhere = Object.keys(GLOBAL_FLAGS).map((key) => `--${kebab(key)}`)
  const parts = [
    `${entry.summary}\n\nUsage: aerie ${entry.names[0]} ${command.usage}`.trimEnd(),
    ...(others.length === 0 ? [] : [`Also:  ${others.join(', ')}`]),
    ...(command.detail === undefined ? [] : [`\n${command.detail}`]),
    ...(flags.length === 0 ? [] : [`\nFlags:\n${flags.join('\n')}`]),
    `\nFlags of every command: ${everywhere.join(', ')}`,
  ]
  return `${parts.join('\n')}\n`
}

/** Describes every command and flag of the program, for people who search and for programs that read. */
export const everything = async (programs: Programs): Promise<string> => {
  const parts: string[] = []
  for (const entry of shown) {
    const command = await entry.load()
    parts.push(
      commandHelp(entry, command, await flagsOf(command, programs)).replace(/\nFlags of every command:.*\n$/, ''),
    )
  }
  return `${parts.join('\n────────\n\n')}\n────────\n\nFlags of every command:\n${flagLines(GLOBAL_FLAGS).join('\n')}\n`
}
