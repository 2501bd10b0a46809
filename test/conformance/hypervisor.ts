import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { GuestSession } from '../../src/guest/session.ts'
import type { HypervisorDriver, MachineIdentity, MachineSpec } from '../../src/hypervisor/driver.ts'
import { Owner, quiet } from '../guest/agent.ts'
import { marked, until, type Bed } from './bed.ts'
import { RemoteDaemon } from './daemon.ts'
import { savedSuite } from './saved.ts'

export { marked, type Bed } from './bed.ts'

export interface SuiteOptions {
  /** How long a guest may take from its start to its agent's word, ms. */
  readonly bootMs: number
  /** Cases that do not hold, each with its reason. */
  readonly except?: Readonly<Record<string, string>>
}

/** What a daemon has of a machine is its identity, as JSON in a row. */
const stored = (identity: MachineIdentity): MachineIdentity => JSON.parse(JSON.stringify(identity)) as MachineIdentity

/**
 * Every hypervisor driver passes this suite (`src/hypervisor/driver.ts` is what it says). One guest boots to its agent;
 * the others need not.
 */
export const hypervisorSuite = (driver: HypervisorDriver, open: () => Promise<Bed>, options: SuiteOptions): void => {
  const { bootMs, except = {} } = options
  const soon = () => AbortSignal.timeout(bootMs)
  const it = (title: string, body: () => Promise<void>, ms = bootMs) =>
    title in except ? test.skip(`${title} (${except[title]})`, body) : test(title, body, ms + 5000)

  describe(`the ${driver.name} driver`, () => {
    let bed: Bed
    beforeAll(async () => {
      bed = await open()
    }, bootMs + 60_000)
    afterAll(async () => {
      await bed[Symbol.asyncDispose]()
    })

    const daemons: RemoteDaemon[] = []
    const newDaemon = (): RemoteDaemon => {
      const daemon = new RemoteDaemon(bed.module, bootMs)
      daemons.push(daemon)
      return daemon
    }
    afterAll(async () => {
      for (const daemon of daemons) await daemon.crash()
    })

    describe('with a guest whose agent is ready', () => {
      let spec: MachineSpec
      let identity: MachineIdentity
      let daemon: RemoteDaemon
      let session: GuestSession
      const owner = new Owner()

      beforeAll(async () => {
        spec = await bed.spec()
        session = await GuestSession.listen(join(spec.folder, 'vsock_1024'), undefined, owner, quiet)
        daemon = newDaemon()
        identity = await daemon.start(spec)
        await until(
          () => owner.taken.length > 0,
          () => `a word of the agent; the console says ${readFileSync(spec.consoleLog, 'latin1').slice(-500)}`,
          bootMs,
        )
      }, bootMs + 10_000)
      afterAll(() => {
        for (const pid of marked(spec.mark)) process.kill(pid, 'SIGKILL')
        session.close()
      })

      it('the guest boots to its agent, and every process is known', async () => {
        expect(owner.taken).toEqual([{ seq: 1, type: 'ready', boot_ms: expect.any(Number) as number }])
        expect(await daemon.state()).toBe('running')
        expect(identity).toMatchObject({ folder: spec.folder, uuid: spec.uuid })
        expect(marked(spec.mark).sort()).toEqual([identity.process, ...identity.helpers].map((one) => one.pid).sort())
      })

      it('the agent is reached over vsock, many times at once', async () => {
        const answers = await Promise.all(Array.from({ length: 10 }, () => daemon.metrics()))

        expect(answers.map((metrics) => typeof metrics['uptime_ms'])).toEqual(
          Array.from({ length: 10 }, () => 'number'),
        )
      })

      it('a port that nobody listens on is refused', async () => {
        await expect(daemon.connect(4242)).rejects.toMatchObject({ code: 'agent_unavailable' })
      })

      it('pause and resume are idempotent, and a paused guest does not answer', async () => {
        await daemon.pause()
        await daemon.pause()
        expect(await daemon.state()).toBe('paused')
        await expect(daemon.metrics(300)).rejects.toThrow()

        await daemon.resume()
        await daemon.resume()

        expect(await daemon.state()).toBe('running')
        expect(await daemon.metrics()).toHaveProperty('uptime_ms')
      })

      it('its console is a socket, and its log holds what was said', async () => {
        const socket = connect(await daemon.console())
        await new Promise<void>((resolve, reject) => {
          socket.once('connect', resolve)
          socket.once('error', reject)
        })
        socket.destroy()

        expect(readFileSync(spec.consoleLog, 'latin1').length).toBeGreaterThan(0)
      })

      it('it outlives its daemon, and the next one adopts it by its identity', async () => {
        await daemon.crash()
        daemon = newDaemon()

        expect(await daemon.adopt(identity)).toEqual(identity)

        expect(await daemon.state()).toBe('running')
        expect(await daemon.metrics()).toHaveProperty('uptime_ms')
        await daemon.pause()
        expect(await daemon.state()).toBe('paused')
        await daemon.resume()
      })

      it('it is not adopted by the identity of another boot of the host', async () => {
        expect(
          await bed.driver.adopt({ ...identity, bootId: '00000000-0000-4000-8000-000000000000' }, soon()),
        ).toBeUndefined()
        expect(await daemon.state()).toBe('running')
      })

      it('a process that has its number and another start time is not adopted, and not touched', async () => {
        const bystander = Bun.spawn(['sleep', '1000'])
        try {
          const { pid, startTime } = identity.process

          expect(
            await bed.driver.adopt({ ...identity, process: { pid, startTime: String(Number(startTime) - 1) } }, soon()),
          ).toBeUndefined()
          expect(
            await bed.driver.adopt({ ...identity, process: { pid: bystander.pid, startTime: '1' } }, soon()),
          ).toBeUndefined()

          expect(await daemon.state()).toBe('running')
          expect(bystander.exitCode).toBeNull()
        } finally {
          bystander.kill()
        }
      })

      it(
        'the power button ends it, and its daemon is told',
        async () => {
          const ended = daemon.ended()
          await daemon.powerButton()

          expect(await ended).toMatchObject({ reason: 'poweroff' })
          expect(await daemon.state()).toBe('ended')
        },
        bootMs * 2,
      )

      it('how it ended is kept for a daemon that was not looking', async () => {
        await daemon.crash()
        daemon = newDaemon()

        expect(await daemon.adopt(identity)).toEqual(identity)

        expect(await daemon.state()).toBe('ended')
        expect(await daemon.ended()).toMatchObject({ reason: 'poweroff' })
      })

      it('a kill lets it go, however often it is asked', async () => {
        await Promise.all([daemon.kill(), daemon.kill()])
        await daemon.kill()

        expect(marked(spec.mark)).toEqual([])
        expect(await daemon.ended()).toMatchObject({ reason: 'poweroff' }) // what was said first stays said
        expect(await bed.driver.adopt(identity, soon())).toBeUndefined()
      })
    })

    it('a machine that is killed from outside has ended, and is not adopted', async () => {
      const spec = await bed.spec()
      const machine = await bed.driver.start(spec, soon())
      process.kill(machine.identity.process.pid, 'SIGKILL')

      expect(await machine.ended).toMatchObject({ reason: 'killed' })

      expect(await bed.driver.adopt(stored(machine.identity), soon())).toBeUndefined()
      await machine.kill()
      expect(marked(spec.mark)).toEqual([])
    })

    it('a kill at once after the start leaves nothing, and the end is told', async () => {
      const spec = await bed.spec()
      const machine = await bed.driver.start(spec, soon())

      await machine.kill()

      expect(await machine.ended).toMatchObject({ reason: 'killed' })
      expect(marked(spec.mark)).toEqual([])
      await expect(machine.connect(1024, soon())).rejects.toMatchObject({ code: 'agent_unavailable' })
    })

    it("a machine whose helper's number belongs to another now does not take that one with it", async () => {
      const spec = await bed.spec()
      const first = newDaemon()
      const identity = await first.start(spec)
      const bystander = Bun.spawn(['sleep', '1000'])
      await first.crash()
      try {
        const adopted = await bed.driver.adopt(
          { ...identity, helpers: [{ pid: bystander.pid, startTime: '1' }] },
          soon(),
        )
        await adopted?.kill()

        expect(bystander.exitCode).toBeNull()
        await until(
          () => marked(spec.mark).length === 0,
          () => 'a helper goes with its machine',
        )
      } finally {
        bystander.kill()
      }
    })

    it('two machines do not know each other', async () => {
      const [one, two] = [await bed.spec(), await bed.spec()]
      const [first, second] = await Promise.all([bed.driver.start(one, soon()), bed.driver.start(two, soon())])

      await first.kill()

      expect(await second.state(soon())).toBe('running')
      await second.kill()
    })

    it('a start without its kernel fails with the reason and leaves nothing', async () => {
      const spec = await bed.spec()
      rmSync(spec.kernel)

      await expect(bed.driver.start(spec, soon())).rejects.toMatchObject({ code: 'machine_failed' })

      expect(marked(spec.mark)).toEqual([])
    })

    it('a start that its caller gives up leaves nothing', async () => {
      const before = await bed.spec()
      const during = await bed.spec()
      const stop = new AbortController()

      await expect(bed.driver.start(before, AbortSignal.abort(new Error('enough')))).rejects.toThrow()
      const starting = bed.driver.start(during, stop.signal)
      queueMicrotask(() => {
        stop.abort(new Error('enough'))
      })
      await starting.then(
        (machine) => machine.kill(),
        () => undefined,
      ) // it may have been too late to stop it

      await until(
        () => [...marked(before.mark), ...marked(during.mark)].length === 0,
        () => 'the processes of the starts have gone',
      )
    })

    it(
      'what is let go leaves no descriptor open',
      async () => {
        const count = () => readdirSync('/proc/self/fd').length
        const round = async () => {
          const machine = await bed.driver.start(await bed.spec(), soon())
          await machine.kill()
          const other = await bed.spec()
          const first = newDaemon()
          const identity = await first.start(other)
          await first.crash()
          await (await bed.driver.adopt(identity, soon()))?.kill()
        }
        await round()
        const before = count()

        await round()
        await round()

        await until(
          () => count() <= before,
          () => `${count()} descriptors are open, ${before} were`,
          3000,
        )
      },
      bootMs * 3,
    )

    savedSuite(driver, () => bed, newDaemon, bootMs)
  })
}

/** What stands in the place of a suite that cannot run here, and why. */
export const skippedSuite = (name: string, reason: string): void => {
  describe(`the ${name} driver`, () => {
    test.skip(`passes the suite of hypervisors (${reason})`, () => undefined)
  })
}
