import { Database } from 'bun:sqlite'
import { drizzle } from 'drizzle-orm/bun-sqlite'
import { Type } from '@sinclair/typebox'
import { fault } from '../lib/fault.ts'
import { EventLog } from './event-log.ts'
import { isDiskFull } from '../lib/errors.ts'
import { type Rows, type Store, whenFull } from './store.ts'
import first from './migrations/0001_init.sql' with { type: 'text' }
import saved from './migrations/0002_saved.sql' with { type: 'text' }
import snapshots from './migrations/0003_snapshots.sql' with { type: 'text' }
import boots from './migrations/0004_boots.sql' with { type: 'text' }
import idempotency from './migrations/0005_idempotency.sql' with { type: 'text' }
import events from './migrations/0006_events.sql' with { type: 'text' }
import reboots from './migrations/0007_reboots.sql' with { type: 'text' }
import networks from './migrations/0008_networks.sql' with { type: 'text' }
import ports from './migrations/0009_ports.sql' with { type: 'text' }

/** The migrations in their order; a released one never changes, a change of the schema is the next file. */
const MIGRATIONS: readonly string[] = [first, saved, snapshots, boots, idempotency, events, reboots, networks, ports]

export const storeNewer = fault(
  'state_newer',
  'conflict',
  { path: Type.String(), found: Type.Integer(), known: Type.Integer() },
  (d) => `Cannot open "${d.path}": a newer aerie wrote it (schema ${d.found}, this one knows ${d.known})`,
  'Start the newer aerie, or restore the state folder of this one',
)

/**
 * Opens the state of this host: WAL, foreign keys on, every commit on disk before it is reported (synchronous = FULL:
 * rows here say who owns processes and files).
 *
 * Transactions take **synchronous** callbacks only: with bun:sqlite a rejected asynchronous one is not rolled back.
 *
 * `makeRoom` is called when a write finds the disk full: while it says true, the write is tried again.
 *
 * @throws `state_newer`
 */
export const openStore = (path: string, makeRoom: () => boolean = () => false): Store => {
  for (;;) {
    try {
      const rows = drizzle(openDatabase(path)) as unknown as Rows
      const store = Object.assign(rows, { events: new EventLog(rows) })
      whenFull(store, makeRoom)
      return store
    } catch (error) {
      if (!isDiskFull(error) || !makeRoom()) throw error
    }
  }
}

const openDatabase = (path: string): Database => {
  const sqlite = new Database(path, { create: true, strict: true })
  sqlite.run('PRAGMA journal_mode = WAL')
  sqlite.run('PRAGMA synchronous = FULL')
  sqlite.run('PRAGMA busy_timeout = 5000')
  sqlite.run('PRAGMA foreign_keys = ON')
  // What a deleted row held, a vm's environment among it, is overwritten and not only forgotten.
  sqlite.run('PRAGMA secure_delete = ON')
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
  return sqlite
}
