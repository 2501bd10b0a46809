import { Type, type TLiteral, type TSchema, type TUnion } from '@sinclair/typebox'
import { named } from './schema.ts'

export type Method = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'

/** One verb of the API. Its fields have Elysia's names, so an operation is itself the hook of its route. */
export interface Operation {
  readonly method: Method
  readonly path: string
  readonly detail: { readonly summary: string; readonly description?: string; readonly tags: readonly string[] }
  readonly params?: TSchema
  readonly query?: TSchema
  readonly body?: TSchema
  readonly response: Readonly<Record<number, TSchema>>
  /** The codes of the faults that this verb can answer with, beside those that any request can meet. */
  readonly faults: readonly string[]
  /** Bytes that its JSON body may have, where that is more than other operations take. */
  readonly bodyMax?: number
  /** Whether a second request with the same Idempotency-Key is answered with what the first one did. */
  readonly idempotent?: true
  /** What a token must be allowed: read < exec < admin. */
  readonly scope: Scope
  /** How the bytes travel where it is not JSON: an upload, a download, server-sent events, a WebSocket. */
  readonly stream?: 'upload' | 'download' | 'sse' | 'websocket'
  /** What the messages of a WebSocket are; present exactly where `stream` is `websocket`. */
  readonly socket?: SocketKind
  /** Whether the operation takes every method of its path: `method` is then the one that is described. */
  readonly anyMethod?: true
}

/**
 * The two ways to speak over a WebSocket: a process, whose first message says what shall run (`contract/exec.ts`), or
 * bytes both ways (`contract/forward.ts`).
 */
export type SocketKind = { readonly kind: 'process'; readonly start: TSchema } | { readonly kind: 'bytes' }

export type Scope = 'read' | 'exec' | 'admin'

/** Declares an operation; its type keeps every word that it is written with. */
export const operation = <const T extends Operation>(it: T): T => it

/** Declares a string that is one of these words. */
export const oneOf = <const T extends readonly string[]>(...words: T) =>
  Type.Union(words.map((word) => Type.Literal(word))) as unknown as TUnion<
    { [K in keyof T]: TLiteral<T[K]> } & TSchema[]
  >

export const Timestamp = Type.String({ format: 'date-time', description: 'RFC 3339, UTC, milliseconds' })
export const Nothing = Type.Null()

/** What every failed request answers: RFC 9457, with Volant's `error`, a stable `code` and a `hint`. */
export const Problem = named(
  'Problem',
  Type.Object(
    {
      type: Type.String(),
      title: Type.String(),
      status: Type.Integer(),
      error: Type.String({ description: 'The same sentence as `title`, where a Volant client looks for it' }),
      code: Type.String({ description: 'Stable, for programs' }),
      hint: Type.Optional(Type.String({ description: 'What to do about it' })),
      request_id: Type.Optional(Type.String()),
      errors: Type.Optional(Type.Array(Type.Object({ path: Type.String(), message: Type.String() }))),
    },
    { additionalProperties: true },
  ),
)
