import { Database } from 'bun:sqlite'
import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { is, sql } from 'drizzle-orm'
import { getTableConfig, SQLiteTable } from 'drizzle-orm/sqlite-core'
import * as schema from '../../src/store/schema.ts'
import { openStore } from '../../src/store/open.ts'
import { immediate, isDuplicate, type Store } from '../../src/store/store.ts'

let folder: string
let path: string
const opened: Store[] = []
const open = (): Store => {
  const store = openStore(path)
  opened.push(store)
  return store
}
beforeEach(() => {
  folder = mkdtempSync('/tmp/aerie-u-')
  path = join(folder, 'state.db')
})
afterEach(() => {
  for (const store of opened.splice(0)) store.$client.close()
  rmSync(folder, { recursive: true })
})

const token = (name: string, hash = name): typeof schema.tokens.$inferInsert => ({
  name,
  prefix: 'p',
  hash,
  scope: 'read',
  createdAt: 1,
})

describe('the state of a host', () => {
  test('is opened twice with the same outcome, and keeps what was in it', () => {
    const first = open()
    const before = first.all(sql`SELECT type, name, sql FROM sqlite_schema ORDER BY name`)
    first.insert(schema.tokens).values(token('kept')).run()
    first.$client.close()
    opened.pop()

    const second = open()

    expect(second.all(sql`SELECT type, name, sql FROM sqlite_schema ORDER BY name`)).toEqual(before)
    expect(before.length).toBeGreaterThan(10)
    expect(
      second
        .select()
        .from(schema.tokens)
        .all()
        .map((row) => row.name),
    ).toEqual(['kept'])
  })

  test('that a newer aerie wrote is refused and not touched', () => {
    open().$client.close()
    opened.pop()
    const raw = new Database(path)
    raw.run('PRAGMA user_version = 1000')
    raw.close()

    expect(() => openStore(path)).toThrow(expect.objectContaining({ code: 'state_newer', kind: 'conflict' }) as Error)
    expect(() => openStore(path)).toThrow('schema 1000')

    const after = new Database(path)
    expect(after.query('PRAGMA user_version').get()).toEqual({ user_version: 1000 })
    after.close()
  })

  test('is on disk before a commit is reported, and holds its references', () => {
    const store = open()
    const pragma = (name: string) => Object.values(store.$client.query(`PRAGMA ${name}`).get() as object)[0] as unknown

    expect({
      journal: pragma('journal_mode'),
      synchronous: pragma('synchronous'),
      keys: pragma('foreign_keys'),
    }).toEqual({ journal: 'wal', synchronous: 2, keys: 1 })
    expect(() => store.insert(schema.imageNames).values({ name: 'x', digest: 'sha256:none' }).run()).toThrow(
      'FOREIGN KEY',
    )
  })
})

const tables = Object.values<unknown>(schema).filter((one): one is SQLiteTable => is(one, SQLiteTable))

test('schema.ts names every table of the migrations, and no other', () => {
  const there = open()
    .all<{ name: string }>(sql`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`)
    .map((row) => row.name)

  expect(tables.map((table) => getTableConfig(table).name).sort()).toEqual(there.sort())
})

for (const table of tables) {
  const { name, columns, indexes, foreignKeys } = getTableConfig(table)

  test(`schema.ts knows table ${name} as the migrations made it`, () => {
    const store = open()
    const info = store.$client.query(`PRAGMA table_info(${name})`).all() as {
      name: string
      type: string
      notnull: number
      dflt_value: string | null
      pk: number
    }[]

    const seen = columns.map((column) => ({
      name: column.name,
      type: column.getSQLType().toUpperCase(),
      // SQLite lets a TEXT primary key be NULL unless it is said not to
      notNull: column.notNull,
      hasDefault: column.default !== undefined,
      primary: column.primary,
    }))
    const made = info.map((column) => ({
      name: column.name,
      type: column.type.toUpperCase(),
      notNull: column.notnull === 1 || (column.pk > 0 && column.type.toUpperCase() === 'INTEGER'),
      hasDefault: column.dflt_value !== null,
      primary: column.pk > 0,
    }))

    expect(seen).toEqual(made)
  })

  test(`schema.ts knows the indexes and references of ${name}`, () => {
    const store = open()
    const list = store.$client.query(`PRAGMA index_list(${name})`).all() as {
      name: string
      unique: number
      origin: string
    }[]
    const columnsOf = (index: string) =>
      (store.$client.query(`PRAGMA index_info(${index})`).all() as { name: string }[]).map((row) => row.name)

    const made = {
      indexes: list
        .filter((one) => one.origin === 'c')
        .map((one) => `${one.name} ${one.unique}`)
        .sort(),
      unique: list
        .filter((one) => one.origin === 'u')
        .map((one) => columnsOf(one.name).join())
        .sort(),
      references: (
        store.$client.query(`PRAGMA foreign_key_list(${name})`).all() as {
          from: string
          table: string
          to: string
          on_delete: string
        }[]
      )
        .map((one) => `${one.from} ${one.table} ${one.to} ${one.on_delete}`.toLowerCase())
        .sort(),
    }
    const seen = {
      indexes: indexes.map((one) => `${one.config.name} ${one.config.unique ? 1 : 0}`).sort(),
      unique: columns
        .filter((column) => column.isUnique)
        .map((column) => column.name)
        .sort(),
      references: foreignKeys
        .map((key) => {
          const {
            columns: [from],
            foreignTable,
            foreignColumns: [to],
          } = key.reference()
          return `${from?.name} ${getTableConfig(foreignTable).name} ${to?.name} ${key.onDelete ?? 'no action'}`.toLowerCase()
        })
        .sort(),
    }

    expect(seen).toEqual(made)
  })
}

describe('a transaction', () => {
  test('that throws leaves nothing, and lets the reason through', () => {
    const store = open()

    expect(() =>
      immediate(store, (tx) => {
        tx.insert(schema.tokens).values(token('gone')).run()
        throw new Error('changed my mind')
      }),
    ).toThrow('changed my mind')

    expect(store.select().from(schema.tokens).all()).toEqual([])
  })

  test('within a transaction that throws takes its own work back alone', () => {
    const store = open()

    immediate(store, (tx) => {
      tx.insert(schema.tokens).values(token('outer')).run()
      try {
        immediate(tx, (inner) => {
          inner.insert(schema.tokens).values(token('inner')).run()
          throw new Error('no')
        })
      } catch {
        /* the outer one goes on */
      }
    })

    expect(
      store
        .select()
        .from(schema.tokens)
        .all()
        .map((row) => row.name),
    ).toEqual(['outer'])
  })

  test('takes the write lock at once: what it reads is true when it writes', () => {
    const one = open()
    const two = open()
    two.$client.run('PRAGMA busy_timeout = 20')

    immediate(one, () => {
      expect(() => immediate(two, () => undefined)).toThrow('locked')
    })
  })
})

describe('a duplicate', () => {
  const caught = (work: () => unknown): unknown => {
    try {
      work()
      return undefined
    } catch (error) {
      return error
    }
  }

  test('is told by its column, however deep the driver wrapped it', () => {
    const store = open()
    store.insert(schema.tokens).values(token('a', 'h')).run()

    const byName = caught(() => store.insert(schema.tokens).values(token('a', 'other')).run())
    const byHash = caught(() => store.insert(schema.tokens).values(token('b', 'h')).run())

    expect([isDuplicate(byName, 'tokens.name'), isDuplicate(byName, 'tokens.hash')]).toEqual([true, false])
    expect([isDuplicate(byHash, 'tokens.name'), isDuplicate(byHash, 'tokens.hash')]).toEqual([false, true])
    expect(isDuplicate(new Error('query failed', { cause: byName }), 'tokens.name')).toBe(true)
  })

  test('of a column whose name only begins like it is another', () => {
    const store = open()
    store.run(sql`CREATE TABLE t (mac TEXT UNIQUE, machine TEXT UNIQUE)`)
    store.run(sql`INSERT INTO t VALUES ('a', 'b')`)

    const error = caught(() => store.run(sql`INSERT INTO t VALUES ('x', 'b')`))

    expect([isDuplicate(error, 't.machine'), isDuplicate(error, 't.mac')]).toEqual([true, false])
  })

  test('is no other breach, and no other error', () => {
    const store = open()
    const missing = caught(() => store.insert(schema.imageNames).values({ name: 'x', digest: 'none' }).run())

    expect(missing).toBeInstanceOf(Error)
    expect(isDuplicate(missing, 'image_names.digest')).toBe(false)
    expect(isDuplicate(new Error('tokens.name'), 'tokens.name')).toBe(false)
    expect(isDuplicate('UNIQUE constraint failed: tokens.name', 'tokens.name')).toBe(false)
  })
})
