import type { Duplex } from 'node:stream'
import type { TSchema } from '@sinclair/typebox'
import type { Filled } from '../contract/schema.ts'
import type { IdempotentId, OperationId, operations, Output, SocketOf, Start } from '../contract/operations.ts'
import type { Claim, Made } from '../store/idempotency.ts'
import type { GuestProcess } from '../vm/machine/process.ts'

type Table = typeof operations
type PartOf<Id extends OperationId, K extends string> =
  Table[Id] extends Readonly<Record<K, infer S extends TSchema>> ? Filled<S> : undefined

/** A request as its operation's handler gets it: let through, read and checked. */
export interface Asked<Id extends OperationId> {
  readonly params: PartOf<Id, 'params'>
  readonly query: PartOf<Id, 'query'>
  readonly body: PartOf<Id, 'body'>
  readonly request: Request
  /** Aborted when the caller goes away. */
  readonly signal: AbortSignal
  /**
   * What stands for the `*` at the end of an operation's path: what the router matched with it, undecoded, and what
   * stood before.
   */
  readonly rest: string
  readonly base: string
}

/** What the verb of an operation returns: nothing that counts where the answer has no body. */
type Returned<Id extends OperationId> = Output<Id> extends null ? unknown : Output<Id>

/** Starts the process that a WebSocket is for. */
export type OpenProcess<S> = (start: S, signal: AbortSignal) => Promise<GuestProcess>
/** Opens the bytes that a WebSocket is for. */
export type OpenBytes = (signal: AbortSignal) => Promise<Duplex>

/** An operation that may be asked again: how it is carried out, and answered from what it made before. */
export interface Once<Id extends OperationId> {
  readonly first: (asked: Asked<Id>, claim: Claim | undefined) => Promise<Output<Id>>
  readonly again: (made: readonly Made[]) => Output<Id> | undefined
}

/**
 * The handler of one operation: one call of one verb. What it returns is sent as JSON with the status of the operation,
 * unless it is a whole response. A WebSocket's handler is called before the upgrade, so that it can refuse with a
 * status, and returns how to open.
 */
export type Handler<Id extends OperationId> =
  Id extends SocketOf<'process'>
    ? (asked: Asked<Id>) => OpenProcess<Start<Id>>
    : Id extends SocketOf<'bytes'>
      ? (asked: Asked<Id>) => OpenBytes
      : Id extends IdempotentId
        ? Once<Id>
        : (asked: Asked<Id>) => Returned<Id> | Response | Promise<Returned<Id> | Response>

/** The handlers of a noun's operations. */
export type Handlers<Id extends OperationId = OperationId> = { readonly [K in Id]: Handler<K> }
