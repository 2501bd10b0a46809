import type { Database } from 'bun:sqlite'
import type { BunSQLiteDatabase } from 'drizzle-orm/bun-sqlite'
import { isDiskFull } from '../lib/errors.ts'
import type { EventLog } from './event-log.ts'

export type Rows = BunSQLiteDatabase & { readonly $client: Database }
/** The rows of this host, with the log of the events that made them so. */
export type Store = Rows & { readonly events: EventLog }

/**
 * Runs a synchronous transaction that takes the write lock at once, so that what it reads is true when it writes. One
 * in another is a savepoint. There is one connection, so inside it the store itself is the transaction, and prepared
 * queries may be used.
 */
export const immediate = <T>(store: Store, work: (tx: Store) => T): T => {
  const run = () => store.$client.transaction(() => work(store)).immediate()
  if (store.$client.inTransaction) return run() // the outermost is tried again as a whole
  for (;;) {
    try {
      return run()
    } catch (error) {
      if (!isDiskFull(error) || roomMakers.get(store)?.() !== true) throw error
    }
  }
}

const roomMakers = new WeakMap<Store, () => boolean>()

/** Says what makes room for a write that finds the disk full: true where it made some. */
export const whenFull = (store: Store, makeRoom: () => boolean): void => {
  roomMakers.set(store, makeRoom)
}

/** Prepares a query, which is built once for a store: building one costs more than running it. */
export const prepared = <T>(build: (store: Store) => T): ((store: Store) => T) => {
  const built = new WeakMap<Store, T>()
  return (store) => {
    const known = built.get(store)
    if (known !== undefined) return known
    const fresh = build(store)
    built.set(store, fresh)
    return fresh
  }
}

/** Tells whether an error is a breach of a UNIQUE or PRIMARY KEY constraint over this column alone (`table.column`). */
export const isDuplicate = (error: unknown, column: string): boolean => {
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    if (/UNIQUE constraint failed: ([\w., ]+)$/m.exec(at.message)?.[1]?.trim() === column) return true
  }
  return false
}

/** Tells whether an error says that a row cannot go, since another refers to it. */
export const isReferenced = (error: unknown): boolean => {
  for (let at: unknown = error; at instanceof Error; at = at.cause)
    if (at.message.includes('FOREIGN KEY constraint failed')) return true
  return false
}
