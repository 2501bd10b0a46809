import { OptionalKind, type TSchema } from '@sinclair/typebox'
import { Value, type ValueError } from '@sinclair/typebox/value'
import { fill } from '../contract/schema.ts'
import type { Operation } from '../contract/operation.ts'
import { requestInvalid } from '../lib/errors.ts'
import type { Fault } from '../lib/fault.ts'
import { depthOf } from '../lib/json.ts'
import { isWord } from '../lib/os-text.ts'

/**
 * Bytes that a JSON body may have, where its operation does not say more. Uploads are streams and have no limit here.
 */
const BODY_MAX = 2 * 1_048_576
const DEPTH_MAX = 64
/** Wrong fields that an answer names. */
const ERRORS_MAX = 8

const JSON_TYPE = /^application\/json\s*(;|$)/i

/** Says what a text should be in words, where its schema has some: a regular expression helps nobody. */
const wordsOf = (message: string, schema: TSchema): string =>
  typeof schema['pattern'] === 'string' && schema.description !== undefined ? `Expected ${schema.description}` : message

/** Names each wrong field once, with what is wrong about it. */
const unfit = (found: Iterable<ValueError>): Fault => {
  const errors: { path: string; message: string }[] = []
  for (const { path, message, schema } of found) {
    const name = path.slice(1).replaceAll('/', '.')
    if (!errors.some((one) => one.path === name)) errors.push({ path: name, message: wordsOf(message, schema) })
    if (errors.length === ERRORS_MAX) break
  }
  const said = errors.map((one) => (one.path === '' ? one.message : `${one.path}: ${one.message}`)).join('; ')
  return requestInvalid({ reason: said, errors })
}

/** Fields whose texts are words of a command line, and may be bytes that are no UTF-8 (`lib/os-text.ts`). */
const WORDS: ReadonlySet<string> = new Set(['argv', 'cmd', 'entrypoint'])

/** Finds a text that no UTF-8 can say: half of a surrogate pair, which nobody reads the same. */
const halfText = (value: unknown, path: string, words: boolean): string | undefined => {
  if (typeof value === 'string') return (words ? isWord(value) : value.isWellFormed()) ? undefined : path
  if (typeof value !== 'object' || value === null) return undefined
  for (const [key, one] of Object.entries(value)) {
    const at = path === '' ? key : `${path}.${key}`
    const half = key.isWellFormed() ? halfText(one, at, words || WORDS.has(key)) : at
    if (half !== undefined) return half
  }
  return undefined
}

/**
 * Checks a value that a request brought, and fills the defaults of its schema into it. In this order: what is said must
 * be whole.
 *
 * @throws `request_invalid`
 */
export const fit = (schema: TSchema, value: unknown): unknown => {
  if (!Value.Check(schema, value)) throw unfit(Value.Errors(schema, value))
  const half = halfText(value, '', false)
  if (half !== undefined)
    throw requestInvalid({ reason: `${half.toWellFormed()}: half of a surrogate pair is no text` })
  return fill(schema, value)
}

/**
 * Reads a query as the types of its schema: `?limit=5` is a number, a key that comes twice is a list. @throws
 * `request_invalid`
 */
export const readQuery = (schema: TSchema, url: string): unknown => {
  const said: Record<string, unknown> = {}
  const { searchParams } = new URL(url)
  for (const key of new Set(searchParams.keys())) {
    const values = searchParams.getAll(key)
    said[key] = values.length === 1 ? values[0] : values
  }
  return fit(schema, Value.Convert(schema, said))
}

/**
 * Reads the JSON object of a request, at most `bodyMax` of it. Who may not ask for the operation was refused before. A
 * body that may be left out is an object without fields then.
 *
 * @throws `request_invalid`
 */
export const readBody = async (operation: Operation, request: Request): Promise<unknown> => {
  const bytes = await bounded(request, operation.bodyMax ?? BODY_MAX)
  if (!operation.body) return undefined
  if (bytes.byteLength === 0 && OptionalKind in operation.body) return fit(operation.body, {})
  const type = request.headers.get('content-type')
  if (type !== null && !JSON_TYPE.test(type)) throw requestInvalid({ reason: 'its body is no application/json' })
  return fit(operation.body, parse(bytes))
}

const bounded = async (request: Request, max: number): Promise<Buffer> => {
  const parts: Uint8Array[] = []
  let size = 0
  for await (const part of request.body ?? []) {
    size += part.byteLength
    if (size > max) throw requestInvalid({ limit: max, reason: `its body is larger than ${max} bytes` })
    parts.push(part)
  }
  return Buffer.concat(parts)
}

/** Parsers and checks recurse as deep as JSON goes, so its depth is looked at first. */
const parse = (bytes: Buffer): object => {
  if (bytes.byteLength === 0) throw requestInvalid({ reason: 'it has no body' })
  if (depthOf(bytes) > DEPTH_MAX) throw requestInvalid({ reason: `its JSON is nested deeper than ${DEPTH_MAX}` })
  let value: unknown
  let proto = false
  try {
    value = JSON.parse(bytes.toString('utf8'), (key, at: unknown) => {
      proto ||= key === '__proto__'
      return at
    })
  } catch (error) {
    throw requestInvalid({ reason: 'its body is no JSON' }, error)
  }
  if (proto) throw requestInvalid({ reason: '__proto__ is no name of a field' })
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw requestInvalid({ reason: 'its body is no JSON object' })
  return value
}
