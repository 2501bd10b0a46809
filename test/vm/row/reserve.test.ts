import { afterEach, beforeEach, expect, test } from 'bun:test'
import { immediate } from '../../../src/store/store.ts'
import { all, find } from '../../../src/vm/row/lookup.ts'
import { insert, type Chance, type Known } from '../../../src/vm/row/reserve.ts'
import { testHost, type TestHost } from '../host.ts'

let bed: TestHost
let known: Known
beforeEach(() => {
  bed = testHost()
  const { spec, runtime, plugin, hypervisor, imageDigest, kernelDigest, cpuCores, memoryMb } = bed.vm('first')
  known = { spec, runtime, plugin, hypervisor, imageDigest, kernelDigest, cpuCores, memoryMb }
})
afterEach(async () => {
  await bed[Symbol.asyncDispose]()
})

/** Gives these one after the other, and the last for ever. */
const giving = (...values: readonly string[]) => {
  const left = [...values]
  return () => (left.length > 1 ? left.shift() : left[0]) ?? ''
}
const chance = (names: readonly string[], macs: readonly string[]): Chance => ({
  name: giving(...names),
  mac: giving(...macs),
})
const reserve = (name: string | undefined, by?: Chance) =>
  immediate(bed.host.store, (tx) => insert(tx, name, known, by))

test('a new vm has a boot that is empty, a CID of its own, and says so in the log of events', () => {
  const row = reserve('web')

  expect(row).toMatchObject({ name: 'web', state: 'pending', cid: 4, boot: { startedAt: null, machine: null } })
  expect(find(bed.host.store, 'web')).toEqual(row)
  expect(bed.events.after(0, 10)).toMatchObject([{ type: 'VM_CREATED', name: 'web', uid: row.uid }])
})

test('what was generated and is taken is generated anew, a name and an address alike', () => {
  const row = reserve(undefined, chance(['first', 'first', 'second'], ['02:00:00:00:00:01', '02:00:00:00:00:02']))

  expect(row).toMatchObject({ name: 'second', mac: '02:00:00:00:00:02' })
  expect(reserve('third', chance([], ['02:00:00:00:00:01', '02:00:00:00:00:03']))).toMatchObject({ name: 'third' })
  expect(bed.events.after(0, 10).map((event) => event.name)).toEqual(['second', 'third'])
})

test('a name that was wanted and is taken is refused, and nothing of its transaction stays', () => {
  const work = () =>
    immediate(bed.host.store, (tx) => {
      insert(tx, 'one', known)
      insert(tx, 'first', known)
    })

  expect(work).toThrow(expect.objectContaining({ code: 'vm_exists', data: { name: 'first' } }) as Error)
  expect(all(bed.host.store).map((row) => row.name)).toEqual(['first'])
  expect(bed.events.newest()).toBe(0)
})

test('a generator that gives nothing but what is taken is not asked for ever', () => {
  expect(() => reserve(undefined, chance(['first'], ['02:00:00:00:00:09']))).toThrow('UNIQUE')
  expect(all(bed.host.store).length).toBe(1)
})
