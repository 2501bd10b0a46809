import type { Noun } from './nouns.ts'
import { Type, type Static, type TSchema } from '@sinclair/typebox'
import { type Fault, fault } from '../lib/fault.ts'
import { parseBytes, parseDuration, parseBandwidth, parseRate } from '../lib/bytes.ts'
import { suggest } from './suggest.ts'

/** One flag of a command: how its text is read, and what help says about it. */
export interface Flag<T> {
  /** `switch` takes no value; `many` may be said several times. */
  readonly kind: 'switch' | 'one' | 'many'
  readonly help: string
  readonly short?: string
  readonly placeholder?: string
  readonly aliases?: readonly string[]
  readonly hidden?: boolean
  /** What the value can be, for completion. */
  readonly words?: readonly string[]
  /** Whose names it can be as well, for completion. */
  readonly noun?: Noun
  /** Reads one value; throws a sentence that completes `Cannot use --flag "text": …`. */
  read(text: string, before: T | undefined): T
}
export type Flags = Readonly<Record<string, Flag<unknown>>>
export type Values<F> = { readonly [K in keyof F]?: F[K] extends Flag<infer T> ? T : never }

export const usageInvalid = fault(
  'usage_invalid',
  'invalid',
  { reason: Type.String(), hint: Type.Optional(Type.String()) },
  (d) => d.reason,
  (d) => d.hint,
)

type More = Partial<Pick<Flag<unknown>, 'short' | 'aliases' | 'hidden' | 'placeholder' | 'words'>>
/** A schema that needs no description on the wire may need a word in help. */
export type MoreOfSchema = More & { readonly help?: string }

/** Declares a switch: `--name`, or `--name=false`. */
export const yes = (help: string, more: More = {}): Flag<boolean> => ({
  ...more,
  kind: 'switch',
  help,
  words: ['true', 'false'],
  read: (text) => {
    if (text !== 'true' && text !== 'false') throw new RangeError('expected true or false')
    return text === 'true'
  },
})

/** Declares a flag with one value that is taken as it stands. */
export const text = (help: string, placeholder: string, more: More = {}): Flag<string> => ({
  ...more,
  kind: 'one',
  help,
  placeholder,
  read: (value) => value,
})

/** Declares a flag for a path in the guest, where there is no current folder to be relative to. */
export const absolute = (help: string, placeholder: string, more: More = {}): Flag<string> => ({
  ...more,
  kind: 'one',
  help,
  placeholder,
  read: (value) => {
    if (!value.startsWith('/')) throw new RangeError('expected an absolute path')
    return value
  },
})

/** Declares a flag that may be given several times; its values keep their order. */
export const list = (help: string, placeholder: string, more: More = {}): Flag<readonly string[]> => ({
  ...more,
  kind: 'many',
  help,
  placeholder,
  read: (value, before = []) => [...before, value],
})

/** Declares a flag whose value is one of a few words. */
export const word = <const W extends readonly string[]>(words: W, help: string, more: More = {}): Flag<W[number]> => ({
  ...more,
  kind: 'one',
  help,
  placeholder: words.join('|'),
  words,
  read: (value) => {
    if (!words.includes(value)) {
      const near = suggest(value, words)
      throw new RangeError(`expected ${words.join(', ')}${near === undefined ? '' : `; did you mean "${near}"?`}`)
    }
    return value
  },
})

/** Declares a flag whose value is a whole number between two bounds, both included. */
export const integer = (help: string, minimum: number, maximum: number, more: More = {}): Flag<number> => ({
  placeholder: 'N',
  ...more,
  kind: 'one',
  help,
  read: (value) => {
    if (!/^\d{1,15}$/.test(value) || Number(value) < minimum || Number(value) > maximum) {
      throw new RangeError(`expected a whole number from ${minimum} to ${maximum}`)
    }
    return Number(value)
  },
})

/** Declares a flag for a size in MiB: `512m`, `1.5g`; a bare number is MiB, as in the API. */
export const mebibytes = (help: string, minimum: number, maximum: number, more: More = {}): Flag<number> => ({
  placeholder: 'SIZE',
  ...more,
  kind: 'one',
  help,
  read: (value) => {
    const bytes = parseBytes(/^\d+$/.test(value) ? `${value}m` : value)
    if (bytes === undefined) throw new RangeError('expected a size like 512m or 2g')
    const mib = Math.ceil(bytes / 2 ** 20)
    if (mib < minimum || mib > maximum) throw new RangeError(`expected ${minimum}m to ${Math.floor(maximum / 1024)}g`)
    return mib
  },
})

/** Declares a flag for a rate in bytes a second: `100MB/s`, `512k`. */
export const rate = (help: string, more: More = {}): Flag<number> => ({
  placeholder: 'RATE',
  ...more,
  kind: 'one',
  help,
  read: (value) => {
    const bytes = parseRate(value)
    if (bytes === undefined) throw new RangeError('expected a rate like 100MB/s or 512k')
    return bytes
  },
})

/** Declares a flag for a rate of a network in bytes a second: `100Mbps`, `12MB/s`. */
export const bandwidth = (help: string, more: More = {}): Flag<number> => ({
  placeholder: 'RATE',
  ...more,
  kind: 'one',
  help,
  read: (value) => {
    const bytes = parseBandwidth(value)
    if (bytes === undefined) throw new RangeError('expected a rate like 100Mbps or 12MB/s')
    return bytes
  },
})

/** Declares a flag for a time in milliseconds: `30`, `500ms`, `5m`; a bare number is seconds. */
export const duration = (help: string, maximumMs: number, more: More = {}): Flag<number> => ({
  placeholder: 'TIME',
  ...more,
  kind: 'one',
  help,
  read: (value) => {
    const ms = parseDuration(value)
    if (ms === undefined || !Number.isFinite(ms)) throw new RangeError('expected a time like 30s, 5m or 500ms')
    if (ms > maximumMs) throw new RangeError(`expected at most ${maximumMs / 1000}s`)
    return ms
  },
})

/** Makes the flag of one property of a schema: its bounds, words, default and help are the schema's. */
export const bySchema = <S extends TSchema>(schema: S, more: MoreOfSchema = {}): Flag<Static<S>> =>
  readerOf(schema, more) as Flag<Static<S>>

const readerOf = (schema: TSchema, { help: said, ...more }: MoreOfSchema): Flag<unknown> => {
  const words = (schema['anyOf'] as { const?: unknown }[] | undefined)
    ?.map((one) => one.const)
    .filter((one) => typeof one === 'string')
  const def: unknown = schema['default']
  const help =
    `${said ?? schema.description ?? ''}${def === undefined || def === '' || def === false ? '' : ` (${String(def)})`}`.trim()
  if (words && words.length > 0) return word(words, help, more)
  if (schema['type'] === 'boolean') return yes(help, more)
  if (schema['type'] === 'integer')
    return integer(
      help,
      (schema['minimum'] as number | undefined) ?? 0,
      (schema['maximum'] as number | undefined) ?? Number.MAX_SAFE_INTEGER,
      more,
    )
  if (schema['type'] === 'number') {
    return {
      placeholder: 'N',
      ...more,
      kind: 'one',
      help,
      read: (value) => {
        const number = Number(value)
        if (value.trim() === '' || !Number.isFinite(number)) throw new RangeError('expected a number')
        return number
      },
    }
  }
  const pattern = typeof schema['pattern'] === 'string' ? new RegExp(schema['pattern'], 'u') : undefined
  const maxLength = schema['maxLength'] as number | undefined
  return {
    placeholder: 'TEXT',
    ...more,
    kind: 'one',
    help,
    read: (value) => {
      if (maxLength !== undefined && value.length > maxLength)
        throw new RangeError(`expected at most ${maxLength} characters`)
      if (pattern && !pattern.test(value))
        throw new RangeError(
          schema.description === undefined ? `expected ${pattern.source}` : `expected: ${schema.description}`,
        )
      return value
    },
  }
}

/** Writes a key of ours (`memoryMib`, `memory_mib`) as a flag is written (`memory-mib`). */
export const kebab = (key: string): string =>
  key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`).replaceAll('_', '-')

interface Named {
  readonly key: string
  readonly flag: Flag<unknown>
  readonly not?: true
}
const byName = (flags: Flags): Map<string, Named> => {
  const names = new Map<string, Named>()
  for (const [key, flag] of Object.entries(flags)) {
    for (const name of [kebab(key), ...(flag.aliases ?? [])]) names.set(`--${name}`, { key, flag })
    if (flag.kind === 'switch') names.set(`--no-${kebab(key)}`, { key, flag, not: true })
  }
  for (const [key, flag] of Object.entries(flags)) {
    if (flag.short !== undefined) names.set(`-${flag.short}`, { key, flag })
  }
  return names
}

/** A command line taken apart: flags by key, arguments, and what stands after `--`. */
export interface Parsed {
  readonly values: Record<string, unknown>
  readonly args: string[]
  readonly rest: string[] | undefined
}

/**
 * Splits the words of one command into flags, arguments, and what stands after `--`.
 *
 * @param argsMax  with `command`, the word after so many arguments begins the guest's command, and nothing of it is a flag of ours
 */
export const parseFlags = (
  flags: Flags,
  argv: readonly string[],
  how: { readonly verb: string; readonly command: boolean; readonly argsMax: number },
): Parsed => {
  const names = byName(flags)
  const values: Record<string, unknown> = {}
  const args: string[] = []
  const unknown = (name: string): Fault => {
    const near = name.startsWith('--')
      ? suggest(
          name,
          [...names.keys()].filter((one) => one.startsWith('--')),
        )
      : undefined // a letter is near to any letter
    return usageInvalid({
      reason: `Cannot use flag "${name}" of ${how.verb}: there is no such flag`,
      hint:
        near !== undefined
          ? `Did you mean "${near}"?`
          : how.command && args.length > 0
            ? 'What belongs to the guest\'s command stands after "--"'
            : `See "aerie help ${how.verb}"`,
    })
  }
  const take = (name: string, { key, flag, not }: Named, value: string): void => {
    try {
      values[key] = flag.read(not ? (value === 'true' ? 'false' : 'true') : value, values[key])
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      throw usageInvalid({ reason: `Cannot use ${name} "${value}": ${error.message}` })
    }
  }
  for (let at = 0; at < argv.length; at++) {
    const it = argv[at] ?? ''
    if (it === '--') return { values, args, rest: argv.slice(at + 1) }
    if (it === '-' || !it.startsWith('-')) {
      if (how.command && args.length === how.argsMax) return { values, args, rest: argv.slice(at) }
      args.push(it)
      continue
    }
    if (it.startsWith('--')) {
      const equals = it.indexOf('=')
      const name = equals < 0 ? it : it.slice(0, equals)
      const named = names.get(name)
      if (!named) throw unknown(name)
      if (equals >= 0) take(name, named, it.slice(equals + 1))
      else if (named.flag.kind === 'switch') take(name, named, 'true')
      else take(name, named, valueAfter(name, at++))
      continue
    }
    for (let letter = 1; letter < it.length; letter++) {
      // -it, -m512m, -fn 5
      const name = `-${it[letter]}`
      const named = names.get(name)
      if (!named) throw unknown(it.length === 2 ? it : name)
      if (named.flag.kind === 'switch') {
        take(name, named, 'true')
        continue
      }
      const attached = it.slice(letter + 1)
      take(name, named, attached !== '' ? attached.replace(/^=/, '') : valueAfter(name, at++))
      break
    }
  }
  return { values, args, rest: undefined }

  function valueAfter(name: string, at: number): string {
    const value = argv[at + 1]
    if (value === undefined || value === '--')
      throw usageInvalid({ reason: `Cannot use ${name}: it needs a value`, hint: `See "aerie help ${how.verb}"` })
    return value
  }
}

/** Writes the lines of help about flags. */
export const flagLines = (flags: Flags): string[] => {
  const rows = Object.entries(flags)
    .filter(([, flag]) => flag.hidden !== true)
    .map(([key, flag]) => {
      const names = [kebab(key), ...(flag.aliases ?? [])].map((name) => `--${name}`).join(', ')
      return [
        `  ${flag.short === undefined ? '    ' : `-${flag.short}, `}${names}${flag.kind === 'switch' ? '' : ` ${flag.placeholder ?? 'VALUE'}`}`,
        `${flag.help}${flag.kind === 'many' ? '; may be repeated' : ''}`,
      ] as const
    })
  const width = Math.min(38, Math.max(0, ...rows.map(([left]) => left.length)) + 2)
  return rows.map(([left, right]) =>
    left.length + 2 > width ? `${left}\n${' '.repeat(width)}${right}` : left.padEnd(width) + right,
  )
}
