import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'drizzle-orm'
import { imageEvents } from '../../src/contract/image.ts'
import { vmEvents } from '../../src/contract/vm.ts'
import { EventLog } from '../../src/store/event-log.ts'
import { openStore } from '../../src/store/open.ts'
import { immediate, type Store } from '../../src/store/store.ts'

let folder: string
let store: Store
let log: EventLog
beforeEach(() => {
  folder = mkdtempSync('/tmp/aerie-u-')
  store = openStore(join(folder, 'state.db'))
  log = new EventLog(store)
})
afterEach(() => {
  store.$client.close()
  rmSync(folder, { recursive: true })
})

const say = (name: string, type: 'VM_CREATED' | 'VM_RUNNING' | 'IMAGE_IMPORTED' = 'VM_CREATED') => {
  immediate(store, (tx) => {
    if (type === 'IMAGE_IMPORTED') log.append(tx, imageEvents, { type, name })
    else log.append(tx, vmEvents, { type, name })
  })
}
const never = new AbortController().signal

describe('the log of events', () => {
  test('numbers them in the order of their transactions, without a gap', () => {
    for (let i = 0; i < 20; i++) say(`vm-${i}`)

    const all = log.after(0, 100)

    expect(all.map((event) => event.seq)).toEqual(Array.from({ length: 20 }, (_, index) => index + 1))
    expect(all.map((event) => event.name)).toEqual(Array.from({ length: 20 }, (_, index) => `vm-${index}`))
    expect([log.oldest(), log.newest()]).toEqual([1, 20])
  })

  test('shows an event as the contract says, with its defaults', () => {
    say('a')

    expect(log.after(0, 1)).toEqual([
      {
        seq: 1,
        type: 'VM_CREATED',
        name: 'a',
        uid: null,
        status: '',
        ip_address: '',
        mac_address: '',
        pid: null,
        message: '',
        timestamp: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/) as string,
      },
    ])
  })

  test('is empty at first', () => {
    expect({ oldest: log.oldest(), newest: log.newest(), all: log.after(0, 10) }).toEqual({
      oldest: 0,
      newest: 0,
      all: [],
    })
  })

  test('is read on from any place, by type and by name, a page at a time', () => {
    say('a')
    say('b', 'VM_RUNNING')
    say('a', 'VM_RUNNING')
    say('c', 'IMAGE_IMPORTED')
    const seqs = (...args: Parameters<EventLog['after']>) => log.after(...args).map((event) => event.seq)

    expect(seqs(2, 100)).toEqual([3, 4])
    expect(seqs(0, 2)).toEqual([1, 2])
    expect(seqs(0, 100, { name: 'a' })).toEqual([1, 3])
    expect(seqs(0, 100, { types: ['VM_RUNNING', 'IMAGE_IMPORTED'] })).toEqual([2, 3, 4])
    expect(seqs(0, 100, { types: [] })).toEqual([])
    expect(seqs(99, 100)).toEqual([])
  })

  test('has nothing of a transaction that failed, and gives its number to the next', () => {
    say('a')
    expect(() =>
      immediate(store, (tx) => {
        log.append(tx, vmEvents, { type: 'VM_CREATED', name: 'never' })
        throw new Error('no')
      }),
    ).toThrow('no')
    say('b')

    expect(log.after(0, 10).map((event) => event.name)).toEqual(['a', 'b'])
    expect(log.newest()).toBe(2)
  })

  test('never gives a number twice, though the newest event was compacted away', () => {
    say('a')
    say('b')
    store.run(sql`DELETE FROM events`)
    say('c')

    expect(log.after(0, 10).map((event) => event.seq)).toEqual([3])
  })

  test('keeps the newest hundred thousand, and its oldest says so', () => {
    store.run(sql`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 101500)
      INSERT INTO events (noun, type, name, data, message, at) SELECT 'vm', 'VM_CREATED', 'old', '{}', '', 0 FROM n`)

    immediate(store, (tx) => {
      for (let i = 0; i < 1000; i++) log.append(tx, vmEvents, { type: 'VM_RUNNING', name: 'new' })
    })

    expect(log.newest()).toBe(102_500)
    expect(log.oldest()).toBe(2501)
  })
})

describe('a reader that waits', () => {
  test('is woken when the event can be read', async () => {
    const waiting = log.appended(never).then(() => log.after(0, 10).map((event) => event.name))

    say('a')

    expect(await waiting).toEqual(['a'])
  })

  test('misses nothing that comes between its look and its waiting', async () => {
    const seen: string[] = []
    const reader = (async () => {
      for (let after = 0; seen.length < 60; ) {
        const appended = log.appended(never)
        for (const event of log.after(after, 7)) {
          seen.push(event.name)
          after = event.seq
        }
        if (log.newest() === after && seen.length < 60) await appended
      }
    })()

    for (let i = 0; i < 60; i++) {
      say(`${i}`)
      if (i % 11 === 0) await Bun.sleep(0)
    }
    await reader

    expect(seen).toEqual(Array.from({ length: 60 }, (_, index) => `${index}`))
  })

  test('is woken with all the others, and each once', async () => {
    let woken = 0
    const all = Promise.all(
      Array.from({ length: 50 }, () =>
        log.appended(never).then(() => {
          woken++
        }),
      ),
    )

    say('a')
    say('b')
    await all

    expect(woken).toBe(50)
  })

  test('goes when its signal says so, at once where it was aborted before', async () => {
    const stop = new AbortController()
    const waiting = log.appended(stop.signal)
    stop.abort()

    await waiting
    await log.appended(stop.signal)
  })

  test('that went away is not kept', async () => {
    const before = process.memoryUsage().heapUsed
    for (let i = 0; i < 20_000; i++) {
      const stop = new AbortController()
      const waiting = log.appended(stop.signal)
      stop.abort()
      await waiting
    }
    Bun.gc(true)

    expect(process.memoryUsage().heapUsed - before).toBeLessThan(8 * 2 ** 20)
  })
})
