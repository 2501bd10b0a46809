import { describe, expect, test } from 'bun:test'
import { chmodSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { kvmSupport } from '../../src/linux/kvm.ts'
import { marked, type Bed } from '../conformance/hypervisor.ts'
import { kernelBed, kernelMissing } from './kernel-bed.ts'
import talon from './talon.driver.ts'

const support = kvmSupport()
const missing = support.usable ? kernelMissing : support.reason
/** In the bed, where every instruction of the host is emulated. */
const BOOT_MS = 60_000
const soon = () => AbortSignal.timeout(BOOT_MS)
const openBed = (): Promise<Bed> => kernelBed(talon, join(import.meta.dir, 'talon.driver.ts'))

describe.skipIf(missing !== undefined)(`talon${missing === undefined ? '' : ` (skipped: ${missing})`}`, () => {
  test(
    'a machine is another user in namespaces of its own, without a capability, a file or an unfiltered call',
    async () => {
      await using bed = await openBed()
      const uid = 0x4165_1234
      const spec = { ...(await bed.spec()), jail: { uid, gid: uid, groups: [0] } }
      chmodSync(join(spec.folder, '../..'), 0o711)
      const machine = await bed.driver.start(spec, soon())
      const { pid } = machine.identity.process
      const status = (field: string): string =>
        new RegExp(`^${field}:[ \\t]*(.*)$`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]?.trim() ?? ''
      try {
        expect(status('Uid')).toBe([uid, uid, uid, uid].join('\t'))
        expect(status('Groups')).toBe('')
        for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapAmb']) expect(status(set)).toBe('0'.repeat(16))
        expect([status('NoNewPrivs'), status('Seccomp')]).toEqual(['1', '2'])
        for (const name of ['user', 'mnt', 'net', 'pid', 'ipc'])
          expect(readlinkSync(`/proc/${pid}/ns/${name}`)).not.toBe(readlinkSync(`/proc/self/ns/${name}`))
        expect(status('NSpid')).toBe(`${pid}\t1`)
        expect(readdirSync(`/proc/${pid}/root`)).toEqual(['vsock'])
      } finally {
        await machine.kill()
      }
      expect(marked(spec.mark)).toEqual([])
    },
    BOOT_MS,
  )

  test(
    'a guest that panics has panicked, and of what is told, also later',
    async () => {
      await using bed = await openBed()
      const machine = await bed.driver.start(
        { ...(await bed.spec()), cmdline: 'console=ttyS0 panic=-1 reboot=t rdinit=/nowhere root=/dev/nowhere' },
        soon(),
      )
      try {
        expect(await machine.ended).toMatchObject({
          reason: 'panic',
          message: expect.stringContaining('root') as unknown,
        })
        expect(await machine.state(soon())).toBe('ended')

        const late = await bed.driver.adopt(machine.identity, soon())

        expect(await late?.ended).toMatchObject({
          reason: 'panic',
          message: expect.stringContaining('root') as unknown,
        })
        await late?.kill()
      } finally {
        await machine.kill()
      }
    },
    BOOT_MS,
  )

  test(
    'what talon refuses is told with its reason',
    async () => {
      await using bed = await openBed()
      const spec = await bed.spec()

      await expect(bed.driver.start({ ...spec, memoryMib: 16 }, soon())).rejects.toMatchObject({
        code: 'machine_failed',
        message: expect.stringContaining('32 MiB') as unknown,
      })
      await expect(
        bed.driver.start({ ...spec, nics: [{ kind: 'user', mac: '02:00:00:00:00:01' }] }, soon()),
      ).rejects.toMatchObject({ code: 'hypervisor_unavailable' })

      expect(marked(spec.mark)).toEqual([])
    },
    BOOT_MS,
  )
})
