import { describe, expect, test } from 'bun:test'
import type { Machine } from '../../../src/hypervisor/driver.ts'
import { listenForAgent } from '../../../src/vm/machine/agent.ts'
import { ClockWatch, setClocks } from '../../../src/vm/machine/clock.ts'
import { freeze, unfreeze } from '../../../src/vm/machine/freeze.ts'
import { runMachine } from '../../../src/vm/machine/halting.ts'
import { pause } from '../../../src/vm/pause.ts'
import { resume } from '../../../src/vm/resume.ts'
import { testHost } from '../host.ts'

/** A vm whose agent writes down what it is asked. */
const bedOf = async (state: 'running' | 'paused') => {
  const bed = testHost()
  const row = bed.vm('web', { state })
  bed.paths(row)
  const live = await listenForAgent(bed.host, row)
  const asked: string[] = []
  const machine = {
    pause: () => {
      asked.push('pause')
      return Promise.resolve()
    },
    resume: () => {
      asked.push('resume')
      return Promise.resolve()
    },
    state: () => Promise.resolve('running'),
  } as unknown as Machine
  live.machine = machine
  const times: number[] = []
  live.session.request = (op, args) => {
    asked.push(op)
    const { time_ns } = typeof args === 'function' ? args() : args
    if (op === 'time') times.push(Number(time_ns) / 1_000_000)
    return Promise.resolve({})
  }
  return { ...bed, row, live, machine, asked, times }
}

describe('the clock of a guest is set', () => {
  test.each([
    [
      'a pause',
      async ({ host, row }: Awaited<ReturnType<typeof bedOf>>) => {
        await pause(host, row.uid)
        await resume(host, row.uid)
      },
    ],
    [
      'the hold of a fork',
      async ({ host, live, machine }: Awaited<ReturnType<typeof bedOf>>) => {
        await freeze(host, live, machine, 'fork')
        await unfreeze(host, live, machine, 'fork')
      },
    ],
    [
      'whatever else halted it',
      async ({ host, live, machine }: Awaited<ReturnType<typeof bedOf>>) => {
        await runMachine(host, live, machine, 'resume')
      },
    ],
    [
      'a suspend of the host',
      async ({ host }: Awaited<ReturnType<typeof bedOf>>) => {
        await setClocks(host)
      },
    ],
  ] as const)('after %s', async (_, act) => {
    await using bed = await bedOf('running')
    const before = Date.now()

    await act(bed)

    expect(bed.times).toHaveLength(1)
    expect(bed.times[0]).toBeGreaterThanOrEqual(before - 1)
    expect(bed.times[0]).toBeLessThanOrEqual(Date.now() + 1)
    expect(bed.asked.lastIndexOf('time')).toBeGreaterThan(bed.asked.indexOf('resume'))
  })

  test('not while it is paused, which has its clock set when it goes on', async () => {
    await using bed = await bedOf('paused')

    await setClocks(bed.host)

    expect(bed.asked).toEqual([])
  })

  test('an agent that does not answer fails nothing', async () => {
    await using bed = await bedOf('paused')
    bed.live.session.request = () => Promise.reject(new Error('no agent'))

    expect((await resume(bed.host, bed.row.uid)).status).toBe('running')
  })
})

test('a jump of the wall clock is seen once, whichever way, and time that passes is none', () => {
  let at = { wallMs: 1_000_000, passedMs: 5 }
  const watch = new ClockWatch(() => at)
  const seen = ([wall, passed]: readonly [number, number]) => {
    at = { wallMs: at.wallMs + wall, passedMs: at.passedMs + passed }
    return watch.hasJumped()
  }

  expect(
    (
      [
        [1000, 1000],
        [60_000, 60_020],
        [3_600_000, 10],
        [10, 10],
        [-5000, 10],
        [10, 10],
        [150, 0],
        [150, 0],
      ] as const
    ).map(seen),
  ).toEqual([false, false, true, false, true, false, false, true])
})
