import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'drizzle-orm'
import { Ballast } from '../../src/store/ballast.ts'
import * as schema from '../../src/store/schema.ts'
import { openStore } from '../../src/store/open.ts'
import { isDiskFull } from '../../src/lib/errors.ts'
import { immediate, type Store } from '../../src/store/store.ts'

const token = (name: string): typeof schema.tokens.$inferInsert => ({
  name,
  prefix: 'x'.repeat(20_000),
  hash: name,
  scope: 'read',
  createdAt: 1,
})
const count = (store: Store): number => store.select().from(schema.tokens).all().length

describe('a write that finds no room', () => {
  let folder: string
  let store: Store
  let asked: number
  let room: boolean

  /** SQLite says of its own limit of pages what it says of a full disk. */
  const pages = (more: number): void => {
    const { page_count } = store.$client.query('PRAGMA page_count').get() as { page_count: number }
    store.$client.run(`PRAGMA max_page_count = ${page_count + more}`)
  }

  beforeEach(() => {
    folder = mkdtempSync('/tmp/aerie-u-')
    asked = 0
    room = true
    store = openStore(join(folder, 'state.db'), () => {
      asked++
      if (room) pages(100)
      return room
    })
    pages(0)
  })
  afterEach(() => {
    store.$client.close()
    rmSync(folder, { recursive: true })
  })

  test('is done again as a whole when room was made', () => {
    let runs = 0
    immediate(store, (tx) => {
      runs++
      for (const name of ['a', 'b']) tx.insert(schema.tokens).values(token(name)).run()
    })

    expect([runs, asked, count(store)]).toEqual([2, 1, 2])
  })

  test('within another is done again with all of it', () => {
    const done: string[] = []
    immediate(store, (tx) => {
      done.push('outer')
      tx.run(sql`UPDATE tokens SET prefix = ''`)
      immediate(tx, (inner) => {
        done.push('inner')
        inner.insert(schema.tokens).values(token('c')).run()
      })
    })

    expect([done, asked, count(store)]).toEqual([['outer', 'inner', 'outer', 'inner'], 1, 1])
  })

  test('fails as it did where there is none to make, and changes nothing', () => {
    room = false
    let fault: unknown
    try {
      immediate(store, (tx) => tx.insert(schema.tokens).values(token('d')).run())
    } catch (error) {
      fault = error
    }

    expect(isDiskFull(fault)).toBe(true)
    expect([asked, count(store)]).toEqual([1, 0])
  })

  test('for another reason is not done again', () => {
    immediate(store, (tx) =>
      tx
        .insert(schema.tokens)
        .values({ ...token('e'), prefix: '' })
        .run(),
    )

    expect(() =>
      immediate(store, (tx) =>
        tx
          .insert(schema.tokens)
          .values({ ...token('e'), prefix: '' })
          .run(),
      ),
    ).toThrow()
    expect(asked).toBe(0)
  })
})

const probe = mkdtempSync('/tmp/aerie-u-')
const mount = (at: string, size: string): boolean => {
  mkdirSync(at, { recursive: true })
  return Bun.spawnSync(['mount', '-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', at], { stderr: 'ignore' }).exitCode === 0
}
const canMount = mount(join(probe, 'm'), '64k')
Bun.spawnSync(['umount', '-l', join(probe, 'm')], { stderr: 'ignore' })
rmSync(probe, { recursive: true })

describe.skipIf(!canMount)('the ballast', () => {
  let folder: string
  beforeEach(() => {
    folder = mkdtempSync('/tmp/aerie-u-')
  })
  afterEach(() => {
    Bun.spawnSync(['umount', '-l', folder], { stderr: 'ignore' })
    rmSync(folder, { recursive: true, force: true })
  })
  const pieces = (): string[] => readdirSync(join(folder, 'ballast'))
  const fill = (name: string): void => {
    for (let size = 2 ** 20; size >= 4096; size /= 2) {
      try {
        for (let n = 0; ; n++) writeFileSync(join(folder, `${name}-${size}-${n}`), Buffer.alloc(size, 1))
      } catch {
        // full, for pieces of this size
      }
    }
  }

  test('takes room on a disk that has some, and gives it to a full one', async () => {
    mount(folder, '40m')
    const ballast = new Ballast(folder)
    await Promise.all([ballast.make(), ballast.make()])
    expect(pieces().reduce((sum, name) => sum + statSync(join(folder, 'ballast', name)).blocks * 512, 0)).toBe(
      8 * 2 ** 20,
    )
    const store = openStore(join(folder, 'state.db'), () => ballast.throwOff())

    fill('guest')
    for (let n = 0; n < 20; n++)
      immediate(store, (tx) =>
        tx
          .insert(schema.tokens)
          .values(token(`t${n}`))
          .run(),
      )

    expect([count(store), ballast.isWhole]).toEqual([20, false])
    expect(pieces().length).toBeGreaterThan(0)
    while (ballast.throwOff()) expect(ballast.isWhole).toBe(false)
    expect(pieces()).toEqual([])
    store.$client.close()
    const again = openStore(join(folder, 'state.db'))
    expect(count(again)).toBe(20)
    again.$client.close()
  })

  test('is not what fills a disk, and comes back with room', async () => {
    mount(folder, '28m')
    const ballast = new Ballast(folder)
    writeFileSync(join(folder, 'guest'), Buffer.alloc(8 * 2 ** 20))

    await ballast.make()
    expect(pieces()).toEqual([])
    expect(await ballast.leavesRoom(folder)).toBe(false)

    rmSync(join(folder, 'guest'))
    expect(await ballast.leavesRoom(folder)).toBe(true)
    expect([ballast.isWhole, pieces().length]).toEqual([true, 16])
  })
})
