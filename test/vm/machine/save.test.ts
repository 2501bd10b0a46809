import { describe, expect, test } from 'bun:test'
import type { End, Machine } from '../../../src/hypervisor/driver.ts'
import { saving } from '../../../src/vm/machine/save.ts'

type State = Awaited<ReturnType<Machine['state']>>

/** Of a machine only what it says of itself. */
const machine = (state: State | undefined, end?: End): Machine =>
  ({
    state: () => (state === undefined ? Promise.reject(new Error('nobody answers')) : Promise.resolve(state)),
    ended: end === undefined ? new Promise(() => undefined) : Promise.resolve(end),
  }) as Partial<Machine> as Machine
const END: End = { reason: 'poweroff', code: 0, message: '' }
const vm = { name: 'web', memoryMb: 64 }

describe('a save that fails', () => {
  test.each([
    ['ended while it was halted', machine('ended')],
    ['ended, and its process with it', machine(undefined, END)],
  ])('of a machine that %s says that the vm has stopped', async (_, one) => {
    for (const verb of ['standby', 'fork']) {
      const failed = saving(vm, one, verb, () => Promise.reject(new Error('it is not paused')))
      await expect(failed).rejects.toMatchObject({
        code: 'vm_wrong_state',
        message: `Cannot ${verb} vm "web": it is stopped`,
      })
    }
  })

  test.each([
    ['is there', machine('paused')],
    ['runs', machine('running')],
    ['does not answer', machine(undefined)],
  ])('of a machine that %s says why', async (_, one) => {
    await expect(saving(vm, one, 'standby', () => Promise.reject(new Error('no room')))).rejects.toThrow('no room')
  })

  test('is none where it went well', async () => {
    expect(await saving(vm, machine('ended'), 'fork', () => Promise.resolve(7))).toBe(7)
  })
})
