import { Database } from 'bun:sqlite'
import { drizzle, type BunSQLiteDatabase } from 'drizzle-orm/bun-sqlite'
import { Type } from '@sinclair/typebox'
import { fault } from '../lib/fault.ts'
import first from './migrations/0001_init.sql' with { type: 'text' }
import saved from './migrations/0002_saved.sql' with { type: 'text' }
import snapshots from './migrations/0003_snapshots.sql' with { type: 'text' }
import boots from './migrations/0004_boots.sql' with { type: 'text' }

export type Store = BunSQLiteDatabase & { readonly $client: Database }

/** In order; a released one never changes, a change of the schema is the next file. */
const MIGRATIONS: readonly string[] = [first, saved, snapshots, boots]

export const storeNewer = fault(
  'state_newer',
  'conflict',
  { path: Type.String(), found: Type.Integer(), known: Type.Integer() },
  (d) => `Cannot open "${d.path}": a newer aerie wrote it (schema ${d.found}, this one knows ${d.known})`,
  'Start the newer aerie, or restore the state folder of this one',
)

/**
 * Opens the state of this host: WAL, foreign keys on, every commit on disk before it is reported (synchronous = FULL: rows here say
 * who owns processes and files).
 *
 * Transactions take **synchronous** callbacks only: with bun:sqlite a rejected asynchronous one is not rolled back.
 *
 * @throws `state_newer`
 */
export const openStore = (path: string): Store => {
  const sqlite = new Database(path, { create: true, strict: true })
  sqlite.run('PRAGMA journal_mode = WAL')
  sqlite.run('PRAGMA synchronous = FULL')
  sqlite.run('PRAGMA busy_timeout = 5000')
  sqlite.run('PRAGMA foreign_keys = ON')
  const found = (sqlite.query('PRAGMA user_version').get() as { user_version: number }).user_version
  if (found > MIGRATIONS.length) {
    sqlite.close()
    throw storeNewer({ path, found, known: MIGRATIONS.length })
  }
  for (const [at, migration] of MIGRATIONS.entries()) {
    if (at < found) continue
    sqlite
      .transaction(() => {
        sqlite.run(migration)
        sqlite.run(`PRAGMA user_version = ${at + 1}`)
      })
      .immediate()
  }
  return drizzle(sqlite) as unknown as Store
}

/**
 * Runs a synchronous transaction that takes the write lock at once, so that what it reads is true when it writes. One in another is a
 * savepoint. There is one connection, so inside it the store itself is the transaction, and prepared queries may be used.
 */
export const immediate = <T>(store: Store, work: (tx: Store) => T): T =>
  store.$client.transaction(() => work(store)).immediate()

/** A query that is built once for a store: building one costs more than running it. */
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

/** Whether an error is a breach of a UNIQUE or PRIMARY KEY constraint over this column alone (`table.column`). */
export const isDuplicate = (error: unknown, column: string): boolean => {
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    if (/UNIQUE constraint failed: ([\w., ]+)$/m.exec(at.message)?.[1]?.trim() === column) return true
  }
  return false
}

/** Whether an error says that a row cannot go, since another refers to it. */
export const isReferenced = (error: unknown): boolean => {
  for (let at: unknown = error; at instanceof Error; at = at.cause)
    if (at.message.includes('FOREIGN KEY constraint failed')) return true
  return false
}
