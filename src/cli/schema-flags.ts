import type { Static, TObject, TProperties, TSchema } from '@sinclair/typebox'
import { bySchema, duration, type Flag, kebab, type MoreOfSchema, mebibytes, usageInvalid } from './flags.ts'

/** How one field's flag differs from what its schema says. */
export interface FieldMore extends MoreOfSchema {
  /** Name of the flag, in camel case, where it is not the field's. */
  readonly as?: string
  /** Reads the flag's text in place of the reader that the schema gives. */
  readonly flag?: Flag<unknown>
}

type Camel<K extends string> = K extends `${infer A}_${infer B}` ? `${A}${Capitalize<Camel<B>>}` : K
/** Units end a field's name; a flag's value says its own. */
type Unitless<K extends string> = K extends `${infer N}_mb` | `${infer N}_ms` | `${infer N}_s` ? N : K
type Key<K extends string, M> = K extends keyof M
  ? M[K] extends { readonly as: infer A extends string }
    ? A
    : Camel<Unitless<K>>
  : Camel<Unitless<K>>

/** The flags of a schema's fields; each reads the value that the field has on the wire. */
export type FieldFlags<P extends TProperties, O extends keyof P, M> = {
  readonly [K in Exclude<keyof P, O> & string as Key<K, M>]: Flag<Static<P[K]>>
}

/** Flags of an operation's fields, and the way back from what was said with them. */
export interface SchemaFlags<P extends TProperties, O extends keyof P, M> {
  readonly flags: FieldFlags<P, O, M>
  /** The fields that were said, under their wire names. What is not said is not sent: the daemon has the defaults. */
  readonly said: (values: Readonly<Record<string, unknown>>) => { [K in Exclude<keyof P, O>]?: Static<P[K]> }
}

const UNIT = /_(mb|ms|s)$/
const camel = (name: string): string =>
  name.replace(UNIT, '').replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase())

/** Reads `sh` as one word, `["sh", "-c"]` as it is, an empty text as none. */
export const readArgv = (text: string): string[] => {
  if (text === '') return []
  if (!text.startsWith('[')) return [text]
  try {
    const words: unknown = JSON.parse(text)
    if (Array.isArray(words) && words.every((word) => typeof word === 'string')) return words
  } catch {
    /* said below */
  }
  throw new RangeError('expected one program, or a JSON array of strings')
}

/** Declares a flag for a program with its arguments. */
export const argv = (help: string, more: MoreOfSchema): Flag<readonly string[]> => ({
  placeholder: 'PROGRAM',
  ...more,
  kind: 'one',
  help,
  read: readArgv,
})

/**
 * Declares a flag that adds `KEY=VALUE` to a record; a wrong one is refused under the flag's own name, whichever alias
 * was said.
 */
export const pairs = (name: string, help: string, more: MoreOfSchema): Flag<Readonly<Record<string, string>>> => ({
  placeholder: 'KEY=VALUE',
  ...more,
  kind: 'many',
  help,
  read: (text, before = {}) => {
    const equals = text.indexOf('=')
    if (equals <= 0) throw usageInvalid({ reason: `Cannot use --${name} "${text}": expected KEY=VALUE` })
    return Object.fromEntries([...Object.entries(before), [text.slice(0, equals), text.slice(equals + 1)]])
  },
})

const inUnit = (value: number, unit: string): string =>
  unit !== 'mb' ? `${value}${unit}` : value % 1024 === 0 && value > 0 ? `${value / 1024}g` : `${value}m`

/** Makes an object of one field out of that field. */
const wrapped = ([name, field]: [string, TSchema], help: string, more: MoreOfSchema): Flag<unknown> => {
  const flag = flagOf(name, field, { ...more, help })
  return { ...flag, read: (text) => ({ [name]: flag.read(text, undefined) }) }
}

/** Makes the flag of one field: a size, a time, words, a switch, a number, a list or a text, as name and schema say. */
const flagOf = (name: string, schema: TSchema, more: MoreOfSchema): Flag<unknown> => {
  const unit = UNIT.exec(name)?.[1]
  const value = schema['default'] as unknown
  const described = more.help ?? schema.description ?? ''
  if (unit !== undefined) {
    const help = `${described.replace(/, MiB\b/, '')}${typeof value === 'number' ? ` (${inUnit(value, unit)})` : ''}`
    const maximum = schema['maximum'] as number
    if (unit === 'mb') return mebibytes(help, schema['minimum'] as number, maximum, more)
    const perUnit = unit === 's' ? 1000 : 1
    const time = duration(help, maximum * perUnit, more)
    // Whole where the field is: a part of a second is one more, and never none.
    const whole = schema['type'] === 'integer' ? Math.ceil : (number: number) => number
    const least = (schema['minimum'] as number | undefined) ?? 0
    return { ...time, read: (text) => Math.max(least, whole(time.read(text, undefined) / perUnit)) }
  }
  const inner = Object.entries((schema['properties'] ?? {}) as TProperties)
  if (inner.length === 1 && inner[0] !== undefined) return wrapped(inner[0], described, more)
  if (schema['type'] === 'array') return argv(described, more)
  if (schema['type'] === 'object' && 'patternProperties' in schema) return pairs(kebab(camel(name)), described, more)
  return bySchema(schema, more)
}

/** Makes the flags of a schema's fields, with their help, and reads the body of a request back from them. */
export const schemaFlags = <
  P extends TProperties,
  const O extends keyof P & string = never,
  const M extends { readonly [K in keyof P]?: FieldMore } = Record<never, never>,
>(
  schema: TObject<P>,
  how: { readonly omit?: readonly O[]; readonly more?: M } = {},
): SchemaFlags<P, O, M> => {
  const omit: readonly string[] = how.omit ?? []
  const fields = Object.entries(schema.properties as TProperties)
    .filter(([name]) => !omit.includes(name))
    .map(([name, field]) => {
      const { as, flag, ...more }: FieldMore = how.more?.[name] ?? {}
      return { name, key: as ?? camel(name), flag: flag ?? flagOf(name, field, more) }
    })
  return {
    flags: Object.fromEntries(fields.map(({ key, flag }) => [key, flag])) as unknown as FieldFlags<P, O, M>,
    said: (values) =>
      Object.fromEntries(
        fields.flatMap(({ name, key }) => (values[key] === undefined ? [] : [[name, values[key]]])),
      ) as never,
  }
}

/** Leaves out what is undefined of a record: a field that was not said is not sent. */
export const defined = <T extends object>(
  record: T,
): { [K in keyof T as undefined extends T[K] ? never : K]: T[K] } & {
  [K in keyof T as undefined extends T[K] ? K : never]?: Exclude<T[K], undefined>
} => Object.fromEntries(Object.entries(record).filter(([, value]) => value !== undefined)) as never
