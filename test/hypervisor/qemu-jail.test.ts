import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import type { Machine, MachineIdentity } from '../../src/hypervisor/driver.ts'
import { type Bed, marked } from '../conformance/bed.ts'
import { kernelBed, kernelMissing } from './kernel-bed.ts'
import qemu from './qemu.driver.ts'

const missing =
  kernelMissing ?? (Bun.which('qemu-system-x86_64') === null ? 'qemu-system-x86_64 is not installed' : undefined)
const START_MS = 30_000

/** Namespaces of a process that are the daemon's own, too. */
const shared = (pid: number, names: readonly string[]): string[] =>
  names.filter((name) => readlinkSync(`/proc/${pid}/ns/${name}`) === readlinkSync(`/proc/self/ns/${name}`))
const ALL = ['mnt', 'pid', 'ipc', 'net'] as const
const processes = ({ process, helpers }: MachineIdentity): number[] => [process, ...helpers].map((one) => one.pid)

describe.skipIf(missing !== undefined)(
  `a QEMU and its backend${missing === undefined ? '' : ` (skipped: ${missing})`}`,
  () => {
    let bed: Bed
    const machines: Machine[] = []
    const marks: string[] = []
    const start = async (nics: 'nics' | 'none'): Promise<number[]> => {
      const spec = await bed.spec()
      marks.push(spec.mark)
      const machine = await qemu.start(
        { ...spec, ...(nics === 'nics' && { nics: [{ kind: 'user', mac: '02:ae:00:00:00:01' }] }) },
        AbortSignal.timeout(START_MS),
      )
      machines.push(machine)
      return processes(machine.identity)
    }
    beforeAll(async () => {
      bed = await kernelBed(qemu, join(import.meta.dir, 'qemu.driver.ts'))
    }, START_MS)
    afterAll(async () => {
      for (const machine of machines) await machine.kill()
      expect(marks.flatMap(marked)).toEqual([])
      await bed[Symbol.asyncDispose]()
    })

    test(
      'share no namespace with the daemon, nor with another machine',
      async () => {
        const [one, other] = [await start('none'), await start('none')]

        for (const pid of [...one, ...other]) expect(shared(pid, ALL)).toEqual([])
        expect(new Set([...one, ...other].map((pid) => readlinkSync(`/proc/${pid}/ns/net`))).size).toBe(4)
        for (const pid of one)
          expect(readFileSync(`/proc/${pid}/net/dev`, 'utf8').match(/^ *\w+:/gm)).toEqual(['    lo:'])
      },
      START_MS,
    )

    test(
      'see no file of the host: QEMU has none at all',
      async () => {
        const [vmm = 0] = await start('none')

        expect(readdirSync(`/proc/${vmm}/root/`)).toEqual([])
        expect(readlinkSync(`/proc/${vmm}/cwd`)).toBe('/')
        expect(readdirSync(`/proc/${vmm}/cwd/`)).toEqual([])
        expect(readFileSync(`/proc/${vmm}/mounts`, 'utf8')).toMatch(/^none \/ tmpfs ro,nosuid,nodev,noexec[^\n]*\n$/)
        expect(await machines.at(-1)?.state(AbortSignal.timeout(START_MS))).toBe('running')
      },
      START_MS,
    )

    test(
      'share the network alone where QEMU is the network of its guest, and the backend not even that',
      async () => {
        const [vmm = 0, backend = 0] = await start('nics')

        expect([shared(vmm, ALL), shared(backend, ALL)]).toEqual([['net'], []])
      },
      START_MS,
    )

    test(
      'have no way to more rights',
      async () => {
        for (const pid of await start('none')) {
          const status = readFileSync(`/proc/${pid}/status`, 'utf8')
          expect(/^NoNewPrivs:\t(\d)/m.exec(status)?.[1]).toBe('1')
          for (const set of ['CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
            expect(new RegExp(`^${set}:\\t(\\w+)`, 'm').exec(status)?.[1]).toBe('0'.repeat(16))
        }
      },
      START_MS,
    )
  },
)
