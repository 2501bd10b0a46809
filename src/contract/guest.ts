import { Type } from '@sinclair/typebox'
import { named } from './schema.ts'

/** What a program is given: execve(2) ends a string at its first NUL. */
export const Text = Type.String({ maxLength: 131_072, pattern: '^[^\\u0000]*$' })
export const GuestUser = Type.String({
  maxLength: 128,
  pattern: '^[^\\u0000-\\u001f]*$',
  description: 'user[:group], names or numbers of the image',
})
export const GuestPath = Type.String({
  minLength: 1,
  maxLength: 4096,
  pattern: '^/[^\\u0000]*$',
  description: 'Absolute path in the guest',
})
/**
 * Bytes of JSON that hold every set of arguments and environment that Linux takes: 2 MiB (execve(2)), of which each may
 * be six in JSON (`\\u0001`), with the quotes and commas round them.
 */
export const ARGUMENTS_JSON_MAX = 16 * 1_048_576
/** More arguments than Linux takes, were all of them empty: what bounds them is how large they are together. */
const ARGUMENTS = { maxItems: 262_144, description: 'With the environment at most the 2 MiB that Linux takes' } as const
export const Argv = Type.Array(Text, ARGUMENTS)
/** The same with a program at least. */
export const CommandArgv = Type.Array(Text, { ...ARGUMENTS, minItems: 1 })
export const Env = named(
  'Env',
  Type.Record(Type.String({ pattern: '^[^=\\u0000]{1,256}$' }), Text, { additionalProperties: false }),
)
