import { afterEach, beforeEach, expect, test } from 'bun:test'
import { existsSync, readFileSync, readdirSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { closeSaved } from '../../src/snapshot/snapshots.ts'
import { immediate } from '../../src/store/store.ts'
import { change } from '../../src/vm/row/moves.ts'
import { testHost, type TestHost } from '../vm/host.ts'

let bed: TestHost
beforeEach(() => {
  bed = testHost()
})
afterEach(async () => {
  await bed[Symbol.asyncDispose]()
})

const folders = (): string[] => readdirSync(join(bed.host.config.state, 'snapshots')).sort()

/** Makes a snapshot to which these vms refer. */
const taken = async (...uids: readonly string[]): Promise<string> => {
  const { snapshots, store } = bed.host
  const made = snapshots.create()
  writeSync(made.memory, 'memory')
  closeSaved(made)
  await snapshots.keep(made.id)
  immediate(store, (tx) => {
    snapshots.record(tx, made.id, uids[0] ?? 'vm_none')
    for (const uid of uids) change(tx, uid, { snapshot: made.id })
  })
  return made.id
}

const letGo = (uid: string, id: string): void => {
  const removeFiles = immediate(bed.host.store, (tx) => {
    change(tx, uid, { snapshot: null })
    return bed.host.snapshots.release(tx, id)
  })
  removeFiles()
}

test('a snapshot goes with the last vm that refers to it, and not before', async () => {
  const one = bed.vm('one', { state: 'standby' })
  const two = bed.vm('two', { state: 'standby' })
  const id = await taken(one.uid, two.uid)

  letGo(one.uid, id)
  expect(folders()).toEqual([id])
  const saved = bed.host.snapshots.open(id)
  expect(readFileSync(saved.memory, 'utf8')).toBe('memory')
  closeSaved(saved)

  letGo(two.uid, id)
  expect(folders()).toEqual([])
  letGo(two.uid, id) // of one that is gone, nothing goes
})

test('a transaction that fails takes its reference and its row back, and the files stay', async () => {
  const { uid } = bed.vm('one', { state: 'standby' })
  const id = await taken(uid)

  expect(() =>
    immediate(bed.host.store, (tx) => {
      change(tx, uid, { snapshot: null })
      bed.host.snapshots.release(tx, id)
      throw new Error('changed my mind')
    }),
  ).toThrow('changed my mind')

  bed.host.snapshots.sweep()
  expect(folders()).toEqual([id])
  expect(existsSync(join(bed.host.config.state, 'snapshots', id, 'state'))).toBe(true)
})

test('a sweep removes what a crash left: files without a row, and rows that nobody refers to', async () => {
  const { uid } = bed.vm('one', { state: 'standby' })
  const kept = await taken(uid)
  await taken()
  closeSaved(bed.host.snapshots.create())

  bed.host.snapshots.sweep()
  bed.host.snapshots.sweep()

  expect(folders()).toEqual([kept])
})

test('files without a name are there for who has them open, and for nobody else', () => {
  const saved = bed.host.snapshots.unnamed()

  expect(folders()).toEqual([])
  expect(writeSync(saved.memory, 'x')).toBe(1)
  closeSaved(saved)
})
