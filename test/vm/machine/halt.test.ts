import { describe, expect, test } from 'bun:test'
import type { VmState } from '../../../src/contract/vm-state.ts'
import type { Halt, Machine } from '../../../src/hypervisor/driver.ts'
import { HaltState, resumeHalted, watchHalts } from '../../../src/vm/machine/halt.ts'
import type { LiveVm } from '../../../src/vm/machine/live.ts'
import { runningAgain } from '../../../src/vm/machine/running.ts'
import { byUid } from '../../../src/vm/row/lookup.ts'
import { testHost } from '../host.ts'

const FULL: Halt = { noSpace: true, message: 'No space left on device' }

/** A vm in this state, and a machine that says what it is told to say. */
const newBed = (state: VmState = 'running', statusMessage: string | null = null) => {
  const bed = testHost()
  const vm = bed.vm('web', { state, statusMessage })
  bed.paths(vm)
  let heard: (halt: Halt | undefined) => void = () => undefined
  const told: string[] = []
  const machine = {
    onHalt: (by: typeof heard) => {
      heard = by
    },
    resume: () => {
      told.push('resume')
      heard(undefined) // as QEMU says it before it answers
      return Promise.resolve()
    },
  } as unknown as Machine
  const live = { uid: vm.uid, name: vm.name, machine, halts: new HaltState() } as unknown as LiveVm
  bed.host.vms.live.set(vm.uid, live)
  watchHalts(bed.host, live, machine)
  return {
    ...bed,
    live,
    told,
    say: async (...halts: (Halt | undefined)[]) => {
      for (const halt of halts) heard(halt)
      await bed.host.vms.queue.idle()
    },
    row: () => byUid(bed.host.store, vm.uid),
    types: () => bed.events.after(0, 100).map((event) => event.type),
  }
}

describe('a guest that its machine has halted', () => {
  test('is paused for a reason that the row and an event tell, and goes on when there is room', async () => {
    await using bed = newBed()

    await bed.say(FULL)

    expect(bed.row()).toMatchObject({ state: 'paused', statusMessage: expect.stringContaining('full') as string })
    expect(bed.events.after(0, 10)).toMatchObject([
      { type: 'VM_PAUSED', message: expect.stringContaining('the disk of the host is full') as string },
    ])

    await resumeHalted(bed.host, bed.live)
    await bed.host.vms.queue.idle()

    expect(bed.told).toEqual(['resume'])
    expect(bed.row()).toMatchObject({ state: 'running', statusMessage: null })
    expect(bed.types()).toEqual(['VM_PAUSED', 'VM_RUNNING'])
  })

  test('refuses what needs it to run with the reason', async () => {
    await using bed = newBed('paused', 'the disk of the host is full')

    await expect(runningAgain(bed.host, 'web', 'exec in')).rejects.toMatchObject({
      code: 'vm_wrong_state',
      message: expect.stringContaining('paused (the disk of the host is full)') as string,
    })
  })

  test('goes on for whoever asks for it, where there is room', async () => {
    await using bed = newBed()
    await bed.say(FULL)

    expect((await runningAgain(bed.host, 'web', 'exec in')).row.state).toBe('running')
  })

  test('and that goes on at once, has not been halted', async () => {
    await using bed = newBed()

    await bed.say(FULL, undefined)

    expect(bed.row()?.state).toBe('running')
    expect(bed.types()).toEqual([])
  })

  test('waits longer each time that it was of no use to go on', async () => {
    const halts = new HaltState()
    const waits: number[] = []
    let now = 1_000_000
    for (let times = 0; times < 9; times++) {
      halts.halted(now)
      const since = now
      while (!halts.mayResume(now)) now += 500
      waits.push(now - since)
      halts.resumed(now)
      now += 100
    }
    now += 3_600_000
    halts.halted(now)

    expect(waits).toEqual([0, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000])
    expect(halts.mayResume(now)).toBe(true)
  })

  test('by a person is not let go on for that', async () => {
    await using bed = newBed('paused')

    await bed.say(FULL)
    await resumeHalted(bed.host, bed.live)

    expect([bed.told, bed.row()?.state]).toEqual([[], 'paused'])
  })

  test('while no daemon looked goes on with the next one', async () => {
    await using bed = newBed('paused', 'the disk of the host is full')

    await bed.say(FULL)
    await resumeHalted(bed.host, bed.live)

    expect([bed.told, bed.row()?.state]).toEqual([['resume'], 'running'])
  })

  test('says nothing to the row of another boot, or of an end', async () => {
    for (const state of ['stopping', 'starting', 'deleting', 'unknown'] as const) {
      await using bed = newBed(state)
      await bed.say(FULL, undefined, FULL)
      expect(bed.row()?.state).toBe(state)
    }
    await using bed = newBed()
    bed.host.vms.live.delete(bed.live.uid)
    await bed.say(FULL)
    expect(bed.row()?.state).toBe('running')
  })
})
