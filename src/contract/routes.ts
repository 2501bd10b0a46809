import { operations, type Operation, type OperationId } from './operations.ts'

/** What a client needs to send a request: no schema. */
export type Route = Pick<Operation, 'method' | 'path' | 'idempotent'>

/**
 * Reads the routes off the table of operations. The client imports this as a macro, which Bun runs when it bundles:
 * making the schemas of every operation takes as long as all else that a short command does.
 */
export const routes = (): Record<OperationId, Route> =>
  Object.fromEntries(
    Object.entries(operations as Readonly<Record<string, Operation>>).map(([id, { method, path, idempotent }]) => [
      id,
      { method, path, ...(idempotent && { idempotent }) },
    ]),
  ) as Record<OperationId, Route>
