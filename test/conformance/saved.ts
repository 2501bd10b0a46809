import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { closeSync, copyFileSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { converse } from '../../src/guest/conversation.ts'
import { GuestSession } from '../../src/guest/session.ts'
import type { HypervisorDriver, Machine, MachineSpec, Saved } from '../../src/hypervisor/driver.ts'
import { Owner, quiet } from '../guest/agent.ts'
import { marked, until, type Bed } from './bed.ts'
import type { RemoteDaemon } from './daemon.ts'

/** The two files of what is saved, by their names. */
interface Files {
  readonly state: string
  readonly memory: string
}

const opened = async <T>(files: Files, flags: 'r' | 'wx+', use: (saved: Saved) => Promise<T>): Promise<T> => {
  const saved = { state: openSync(files.state, flags, 0o600), memory: openSync(files.memory, flags, 0o600) }
  try {
    return await use(saved)
  } finally {
    closeSync(saved.state)
    closeSync(saved.memory)
  }
}

const digest = (path: string): string => new Bun.CryptoHasher('sha256').update(readFileSync(path)).digest('hex')
const digests = (files: Files): string => `${digest(files.state)} ${digest(files.memory)}`

const uptime = async (machine: Machine, signal: AbortSignal): Promise<unknown> => {
  const { conversation, ok } = await converse(machine, 'metrics', {}, signal)
  conversation.close()
  return ok['uptime_ms']
}

/** What of a driver is saved and restored; the other half of the suite of hypervisors. */
export const savedSuite = (
  driver: HypervisorDriver,
  bed: () => Bed,
  newDaemon: () => RemoteDaemon,
  bootMs: number,
): void => {
  const soon = () => AbortSignal.timeout(bootMs)
  const restore = (spec: MachineSpec, saved: Saved): Promise<Machine> => {
    if (!driver.restore) throw new Error('it has no restore')
    return driver.restore(spec, saved, soon())
  }
  const snapshot = async (machine: Machine, files: Files, signal = soon()): Promise<Files> => {
    await opened(files, 'wx+', async (saved) => {
      await machine.snapshot?.(saved, signal)
    })
    return files
  }

  describe.skipIf(!driver.restore)(
    `saved and restored${driver.restore ? '' : ' (skipped: the driver has no restore)'}`,
    () => {
      const it = (title: string, body: () => Promise<void>, ms = bootMs) => {
        test(title, body, ms + 5000)
      }
      const owner = new Owner()
      const specs: MachineSpec[] = []
      const sessions: GuestSession[] = []
      let folder: string
      let spec: MachineSpec
      let mother: Machine
      let session: GuestSession
      let saved: Files
      let sums: string
      let count = 0

      const files = (): Files => ({ state: join(folder, `state-${++count}`), memory: join(folder, `memory-${count}`) })
      const copyOf = (from: Files, cut?: keyof Files): Files => {
        const copy = files()
        for (const name of ['state', 'memory'] as const) copyFileSync(from[name], copy[name])
        if (cut) truncateSync(copy[cut], Bun.file(copy[cut]).size - 1)
        return copy
      }
      /** A machine of its own that is to become another one: its disks are copies. */
      const childOf = async (mother: MachineSpec): Promise<MachineSpec> => {
        const child = await bed().spec()
        for (const [index, disk] of child.disks.entries())
          if (!disk.readOnly) copyFileSync(mother.disks[index]?.path ?? '', disk.path)
        specs.push(child)
        return child
      }
      /**
       * Listens where a restored agent calls. What it knows of before is the session's secret, and that is in its
       * memory alone.
       */
      const sessionOf = async (
        child: MachineSpec,
      ): Promise<{ readonly session: GuestSession; readonly owner: Owner }> => {
        const heir = new Owner()
        heir.hash = owner.hash
        heir.taken = [...owner.taken]
        const session = await GuestSession.listen(join(child.folder, 'vsock_1024'), undefined, heir, quiet)
        sessions.push(session)
        return { session, owner: heir }
      }
      const answers = async (machine: Machine) => {
        expect(await uptime(machine, soon())).toBeNumber()
      }
      const introduce = async (machine: Machine, name: string): Promise<void> => {
        const { conversation, ok } = await converse(
          machine,
          'identity',
          {
            hostname: name,
            machine_id: 'c'.repeat(32),
            entropy: 'ab'.repeat(32),
            time_ns: Date.now() * 1_000_000,
            network: { mode: 'none' },
          },
          soon(),
        )
        conversation.close()
        expect(ok).toEqual({})
      }

      beforeAll(
        async () => {
          folder = mkdtempSync('/tmp/aerie-s-')
          spec = await bed().spec()
          specs.push(spec)
          session = await GuestSession.listen(join(spec.folder, 'vsock_1024'), undefined, owner, quiet)
          sessions.push(session)
          mother = await driver.start(spec, soon())
          await until(
            () => owner.taken.length > 0,
            () => `a word of the agent; the console says ${readFileSync(spec.consoleLog, 'latin1').slice(-500)}`,
            bootMs,
          )
          await mother.pause(soon())
          saved = await snapshot(mother, files())
          sums = digests(saved)
        },
        bootMs * 2 + 10_000,
      )
      afterAll(async () => {
        for (const one of sessions) one.close()
        for (const one of specs) for (const pid of marked(one.mark)) process.kill(pid, 'SIGKILL')
        await mother.kill()
        rmSync(folder, { recursive: true, force: true })
      })

      it('what was saved stays paused, and goes on with its connections when it is resumed', async () => {
        expect(await mother.state(soon())).toBe('paused')

        await mother.resume(soon())

        expect(await mother.state(soon())).toBe('running')
        await answers(mother)
        expect(await session.request('ping', {}, soon())).toMatchObject({ ok: true })
        expect(owner.configured).toBe(1)
      })

      it('a running machine is not saved', async () => {
        await expect(snapshot(mother, files())).rejects.toThrow()

        expect(await mother.state(soon())).toBe('running')
        await answers(mother)
      })

      it('a save that cannot be written, or that is given up, leaves the machine as it was', async () => {
        await mother.pause(soon())
        const full: Files = { ...files(), state: '/dev/full' }
        const memory = openSync(full.memory, 'wx+')
        const state = openSync(full.state, 'r+')
        try {
          await expect(Promise.resolve(mother.snapshot?.({ state, memory }, soon()))).rejects.toThrow()
        } finally {
          closeSync(state)
          closeSync(memory)
        }
        await expect(snapshot(mother, files(), AbortSignal.abort(new Error('enough')))).rejects.toThrow('enough')
        const stop = new AbortController()
        const saving = snapshot(mother, files(), stop.signal)
        queueMicrotask(() => {
          stop.abort(new Error('enough'))
        })
        await saving.catch(() => undefined) // it may have been too late to stop it

        expect(await mother.state(soon())).toBe('paused')
        await mother.resume(soon())
        await answers(mother)
      })

      it(
        'machines of one save are paused, then answer side by side, with the memory of before',
        async () => {
          const children = await Promise.all([childOf(spec), childOf(spec)])
          const heirs = await Promise.all(children.map(sessionOf))
          const machines = await Promise.all(
            children.map((child) => opened(saved, 'r', (from) => restore(child, from))),
          )

          expect(await Promise.all(machines.map((machine) => machine.state(soon())))).toEqual(['paused', 'paused'])
          for (const [index, machine] of machines.entries()) {
            const child = children[index]
            const { process, helpers, ...rest } = machine.identity
            expect(rest).toMatchObject({ folder: child?.folder, uuid: child?.uuid })
            expect(marked(child?.mark ?? '').sort()).toEqual([process, ...helpers].map((one) => one.pid).sort())
          }

          await Promise.all(machines.map((machine) => machine.resume(soon())))
          await Promise.all(machines.map((machine, index) => introduce(machine, `child-${index}`)))
          await Promise.all(machines.map(answers))
          for (const heir of heirs) {
            expect(await heir.session.request('ping', {}, soon())).toMatchObject({ ok: true })
            expect(heir.owner.configured).toBe(0) // it had its configuration
          }
          await answers(mother)

          await Promise.all(machines.map((machine) => machine.kill()))
          expect(children.flatMap((child) => marked(child.mark))).toEqual([])
          expect(digests(saved)).toBe(sums)
        },
        bootMs * 2,
      )

      it(
        'a restored machine is adopted, saved, and ended as any other',
        async () => {
          const child = await childOf(spec)
          const { session } = await sessionOf(child)
          const first = newDaemon()
          const identity = await first.restore(child, saved)
          await first.resume()
          await session.request('ping', {}, soon())
          await first.crash()
          const next = newDaemon()

          expect(await next.adopt(identity)).toEqual(identity)

          expect(await next.state()).toBe('running')
          expect(await next.metrics()).toHaveProperty('uptime_ms')
          await next.pause()
          expect(await next.state()).toBe('paused')
          const again = files()
          await next.snapshot(again)
          await next.resume()
          expect(await next.metrics()).toHaveProperty('uptime_ms')

          const grandchild = await childOf(child)
          const heir = await sessionOf(grandchild)
          const machine = await opened(again, 'r', (from) => restore(grandchild, from))
          await machine.resume(soon())
          await introduce(machine, 'grandchild')
          expect(await heir.session.request('ping', {}, soon())).toMatchObject({ ok: true })
          await machine.kill()

          const ended = next.ended()
          await next.powerButton()
          expect(await ended).toMatchObject({ reason: 'poweroff' })
          await next.kill()
          expect([child, grandchild].flatMap((one) => marked(one.mark))).toEqual([])
        },
        bootMs * 3,
      )

      it(
        'what is not whole is refused, and leaves nothing',
        async () => {
          await introduce(mother, 'mother') // its memory is another one now
          await mother.pause(soon())
          const other = await snapshot(mother, files())
          await mother.resume(soon())
          const junk = files()
          for (const path of [junk.state, junk.memory]) await Bun.write(path, 'junk\n'.repeat(10_000))
          await answers(mother)

          for (const from of [
            copyOf(saved, 'state'),
            copyOf(saved, 'memory'),
            { ...saved, memory: other.memory },
            { ...saved, state: junk.state },
            { ...saved, memory: junk.memory },
          ]) {
            const child = await childOf(spec)
            await expect(opened(from, 'r', (open) => restore(child, open))).rejects.toMatchObject({
              code: 'machine_failed',
            })
            expect(marked(child.mark)).toEqual([])
          }
        },
        bootMs * 3,
      )

      it('a machine of another shape is refused', async () => {
        const child = await childOf(spec)
        const [, ...disks] = child.disks
        for (const shape of [
          { memoryMib: spec.memoryMib * 2 },
          { vcpus: spec.vcpus + 1 },
          ...(child.disks.length > 0 ? [{ disks }] : []),
        ]) {
          await expect(opened(saved, 'r', (from) => restore({ ...child, ...shape }, from))).rejects.toMatchObject({
            code: 'machine_failed',
          })
          expect(marked(child.mark)).toEqual([])
        }
      })

      it('a restore that its caller gives up leaves nothing', async () => {
        const child = await childOf(spec)
        const stop = new AbortController()
        const restoring = opened(
          saved,
          'r',
          (from) => driver.restore?.(child, from, stop.signal) ?? Promise.reject(new Error('it has no restore')),
        )
        setTimeout(() => {
          stop.abort(new Error('enough'))
        }, 20)
        await restoring.then(
          (machine) => machine.kill(),
          () => undefined,
        ) // it may have been too late to stop it

        await until(
          () => marked(child.mark).length === 0,
          () => 'its processes have gone',
        )
      })

      it(
        'what is saved and restored leaves no descriptor open',
        async () => {
          const open = () =>
            new Set(new Bun.Glob('*').scanSync({ cwd: '/proc/self/fd', onlyFiles: false, followSymlinks: false })).size
          const round = async () => {
            await mother.pause(soon())
            const again = await snapshot(mother, files())
            await mother.resume(soon())
            const machine = await opened(again, 'r', async (from) => await restore(await childOf(spec), from))
            await machine.kill()
          }
          await round()
          const before = open()

          await round()

          await until(
            () => open() <= before,
            () => `${open()} descriptors are open, ${before} were`,
            3000,
          )
        },
        bootMs * 2,
      )
    },
  )
}
