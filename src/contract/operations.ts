import type { Static, TSchema } from '@sinclair/typebox'
import { execOperations } from './exec.ts'
import { fileOperations } from './files.ts'
import { forwardOperations } from './forward.ts'
import { imageOperations } from './image.ts'
import { kernelOperations } from './kernel.ts'
import { logOperations } from './log.ts'
import { networkOperations } from './network.ts'
import { portOperations } from './port.ts'
import type { Operation } from './operation.ts'
import { statsOperations } from './stats.ts'
import { systemOperations } from './system.ts'
import { vmOperations } from './vm.ts'

/** Every verb of the API: routes, the client, the command line and OpenAPI are read off this table. */
export const operations = {
  ...vmOperations,
  ...execOperations,
  ...forwardOperations,
  ...logOperations,
  ...fileOperations,
  ...statsOperations,
  ...imageOperations,
  ...kernelOperations,
  ...networkOperations,
  ...portOperations,
  ...systemOperations,
}
export type OperationId = keyof typeof operations

/** Codes that any request can be answered with. */
export const COMMON_FAULTS = [
  'request_invalid',
  'disk_exhausted',
  'daemon_busy',
  'route_not_found',
  'token_missing',
  'token_invalid',
  'token_scope',
  'host_refused',
  'origin_refused',
  'internal',
  'shutting_down',
] as const

/** Operations whose bytes travel in this way. */
export type Streaming<S extends string> = {
  [Id in OperationId]: (typeof operations)[Id] extends { readonly stream: S } ? Id : never
}[OperationId]
/** Operations that may be asked again with the same Idempotency-Key. */
export type IdempotentId = {
  [Id in OperationId]: (typeof operations)[Id] extends { readonly idempotent: true } ? Id : never
}[OperationId]
/** Operations over a WebSocket of this kind. */
export type SocketOf<K extends string> = {
  [Id in OperationId]: (typeof operations)[Id] extends { readonly socket: { readonly kind: K } } ? Id : never
}[OperationId]
/** The first message of a process's WebSocket. */
export type Start<Id extends SocketOf<'process'>> = Of<(typeof operations)[Id]['socket']['start']>

type Of<S> = S extends TSchema ? Static<S> : never
type Part<O, K extends string> = O extends Readonly<Record<K, infer S>> ? Of<S> : undefined
type PartsOf<O> = Extract<'params' | 'query' | 'body', keyof O>
/** What a caller gives an operation: only the parts that it has, and those that can be empty may be left out. */
export type Input<Id extends OperationId> = (typeof operations)[Id] extends infer O
  ? { readonly [K in PartsOf<O> as Record<never, never> extends Part<O, K> ? never : K]: Part<O, K> } & {
      readonly [K in PartsOf<O> as Record<never, never> extends Part<O, K> ? K : never]?: Part<O, K>
    }
  : never
/** The JSON of the successful answer. */
export type Output<Id extends OperationId> = (typeof operations)[Id]['response'] extends infer R
  ? Of<R[keyof R]>
  : never
export type { Operation }
