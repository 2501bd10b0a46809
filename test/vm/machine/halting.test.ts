import { describe, expect, test } from 'bun:test'
import type { VmState } from '../../../src/contract/vm-state.ts'
import type { Machine } from '../../../src/hypervisor/driver.ts'
import { driver } from '../../../src/hypervisor/drivers/fake/fake.ts'
import { Hypervisors } from '../../../src/hypervisor/hypervisors.ts'
import { deferred } from '../../../src/lib/promise.ts'
import type { BootRow } from '../../../src/store/schema.ts'
import { fork } from '../../../src/vm/fork.ts'
import { listenForAgent } from '../../../src/vm/machine/agent.ts'
import { haltMachine } from '../../../src/vm/machine/halting.ts'
import { pause } from '../../../src/vm/pause.ts'
import { resume } from '../../../src/vm/resume.ts'
import { byUid } from '../../../src/vm/row/lookup.ts'
import { standby } from '../../../src/vm/standby.ts'
import { testHost } from '../host.ts'

type Doing = 'running' | 'paused' | 'ended'

/** A machine at the driver's interface whose VMM fails verbs as one does that waits for a slow disk. */
class SlowMachine implements Partial<Machine> {
  readonly asked: string[] = []
  doing: Doing
  /** What a verb does; one that is not here does what it says. */
  verbs: Partial<Record<'pause' | 'resume' | 'snapshot' | 'fork', () => void>> = {}
  /** How often it does not say what it does. */
  silent = 0
  readonly mended = deferred<undefined>()

  constructor(doing: Doing) {
    this.doing = doing
  }

  readonly #do = (verb: 'pause' | 'resume' | 'snapshot' | 'fork', done: () => void): Promise<void> => {
    this.asked.push(verb)
    try {
      ;(this.verbs[verb] ?? done)()
      return Promise.resolve()
    } catch (error) {
      return Promise.reject(error as Error)
    }
  }

  pause = () =>
    this.#do('pause', () => {
      this.doing = 'paused'
    })
  resume = () =>
    this.#do('resume', () => {
      this.doing = 'running'
      this.mended.resolve(undefined)
    })
  snapshot = () => this.#do('snapshot', () => undefined)
  fork = async (into: Awaited<ReturnType<NonNullable<Machine['fork']>>>) => {
    await this.#do('fork', () => undefined)
    return into
  }
  state = (): Promise<Doing> =>
    this.silent-- > 0 ? Promise.reject(new Error('it does not answer')) : Promise.resolve(this.doing)
  kill = () => Promise.resolve()
}

const late = (): never => {
  throw new Error('The operation timed out.')
}

const bedOf = async (state: VmState, machine: SlowMachine, boot: Partial<BootRow> = {}) => {
  const bed = testHost()
  const host = {
    ...bed.host,
    hypervisors: new Hypervisors([driver], { name: 'fake', accelerator: 'none', reason: 'a test' }),
  }
  const row = bed.vm('web', { state, boot })
  bed.paths(row)
  const live = await listenForAgent(host, row)
  // No agent ever comes: nobody is asked to write out disks, and nobody waits for it.
  live.session.request = () => Promise.reject(new Error('no agent'))
  live.machine = machine as unknown as Machine
  return {
    host,
    state: () => byUid(host.store, row.uid)?.state,
    halt: () => haltMachine(host, live, live.machine as Machine, 'restore'),
    /** Waits until nobody mends the machine any more. */
    settled: async () => {
      while (live.isReconciling) await Bun.sleep(10)
    },
    [Symbol.asyncDispose]: async () => {
      live.close()
      await bed[Symbol.asyncDispose]()
    },
  }
}

describe('a machine that does not answer in time', () => {
  type Verb = (host: Awaited<ReturnType<typeof bedOf>>['host'], name: string) => Promise<unknown>
  test.each<[string, Verb]>([
    ['pause', pause],
    ['standby', standby],
    ['fork', (host, name) => fork(host, name, {})],
  ])('and was halted late by a %s that failed runs on as its row says', async (_, verb) => {
    const machine = new SlowMachine('running')
    await using bed = await bedOf('running', machine)
    machine.silent = 2
    machine.verbs.pause = () => {
      machine.doing = 'paused' // after the daemon has given up
      late()
    }

    await expect(verb(bed.host, 'web')).rejects.toMatchObject({ code: 'machine_silent', kind: 'timeout' })
    await machine.mended.promise
    await bed.settled()

    expect(machine.doing).toBe('running')
    expect(bed.state()).toBe('running')
  })

  test('but has halted all the same is paused', async () => {
    const machine = new SlowMachine('running')
    await using bed = await bedOf('running', machine)
    machine.verbs.pause = () => {
      machine.doing = 'paused'
      late()
    }

    expect(await pause(bed.host, 'web')).toMatchObject({ status: 'paused' })

    expect(machine.asked).toEqual(['pause'])
  })

  test('and does not halt is left as it is', async () => {
    const machine = new SlowMachine('running')
    await using bed = await bedOf('running', machine)
    machine.verbs.pause = late

    await expect(pause(bed.host, 'web')).rejects.toMatchObject({ code: 'machine_silent' })
    await bed.settled()

    expect(machine.asked).toEqual(['pause'])
    expect(bed.state()).toBe('running')
  })

  test('when it shall go on does so later, and the row follows', async () => {
    const machine = new SlowMachine('paused')
    await using bed = await bedOf('paused', machine)
    machine.silent = 1
    machine.verbs.resume = () => {
      machine.verbs = {}
      late()
    }

    await expect(resume(bed.host, 'web')).rejects.toMatchObject({ code: 'machine_silent' })
    expect(bed.state()).toBe('paused')
    await machine.mended.promise
    await bed.settled()

    expect(machine.doing).toBe('running')
    expect(bed.state()).toBe('running')
  })

  test('after a standby that failed goes on later, and the standby says why it failed', async () => {
    const machine = new SlowMachine('running')
    await using bed = await bedOf('running', machine)
    machine.verbs.snapshot = () => {
      throw new Error('the disk is slow')
    }
    machine.verbs.resume = () => {
      machine.verbs = {}
      late()
    }

    await expect(standby(bed.host, 'web')).rejects.toMatchObject({
      code: 'snapshot_failed',
      message: expect.stringContaining('the disk is slow') as string,
    })
    expect(bed.state()).toBe('paused')
    await machine.mended.promise
    await bed.settled()

    expect(bed.state()).toBe('running')
  })

  test('when a restored guest must not run is halted as soon as it does', async () => {
    const machine = new SlowMachine('running')
    await using bed = await bedOf('paused', machine, { identityDue: true })
    machine.verbs.pause = () => {
      machine.verbs = {}
      late()
    }

    await expect(bed.halt()).rejects.toMatchObject({ code: 'machine_silent' })
    expect(machine.doing).toBe('running')
    await bed.settled()

    expect(machine.doing).toBe('paused')
    expect(bed.state()).toBe('paused')
  })

  test('and ends meanwhile is left to its end', async () => {
    const machine = new SlowMachine('running')
    await using bed = await bedOf('running', machine)
    machine.silent = 1
    machine.verbs.pause = () => {
      machine.doing = 'ended'
      late()
    }

    await expect(pause(bed.host, 'web')).rejects.toMatchObject({ code: 'machine_silent' })
    await bed.settled()

    expect(machine.asked).toEqual(['pause'])
  })

  test('is asked no more when its boot is over', async () => {
    const machine = new SlowMachine('running')
    const bed = await bedOf('running', machine)
    machine.silent = Infinity
    machine.verbs.pause = late

    await expect(pause(bed.host, 'web')).rejects.toMatchObject({ code: 'machine_silent' })
    await bed[Symbol.asyncDispose]()
    await bed.settled()

    expect(machine.asked).toEqual(['pause'])
  })
})
