import { describe, expect, test } from 'bun:test'
import { copyFileSync, existsSync, linkSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Machine } from '../../src/hypervisor/driver.ts'
import { talon } from '../../src/hypervisor/drivers/talon.ts'
import { Images } from '../../src/image/images.ts'
import { Kernels } from '../../src/kernel/kernels.ts'
import { kvmSupport } from '../../src/linux/kvm.ts'
import { EventLog } from '../../src/store/events.ts'
import { openStore } from '../../src/store/store.ts'
import { writeTemplate } from '../../src/volume/template.ts'
import { hypervisorSuite, marked, type Bed } from '../conformance/hypervisor.ts'
import { bedOf } from './bed.ts'

const deb = process.env['AERIE_TEST_KERNEL_DEB'], { usable, reason } = kvmSupport()
const missing = !usable ? `${reason}; test/bed/aerie runs it where KVM is real`
  : deb === undefined || !existsSync(deb) ? 'AERIE_TEST_KERNEL_DEB names no Debian package of a kernel' : undefined
/** In the bed, where every instruction of the host is emulated. */
const BOOT_MS = 60_000
const soon = () => AbortSignal.timeout(BOOT_MS)

/** A kernel of Debian's, unpacked, and the smallest image there is, made as the daemon makes them; each machine boots copies of its own. */
const openBed = async (): Promise<Bed> => {
  const state = mkdtempSync('/tmp/aerie-k-'), store = openStore(join(state, 'state.db')), events = new EventLog(store), signal = AbortSignal.timeout(60_000)
  const kernels = new Kernels(store, events, state), images = new Images(store, events, state)
  const { digest } = await kernels.import({}, Bun.file(deb ?? '').stream(), signal)
  const initramfs = await kernels.initramfs(digest), vmlinux = await kernels.vmlinux(digest)
  await images.import({ name: 'tiny' }, new Blob([await new Bun.Archive({ 'etc/hostname': 'tiny\n' }).blob()]).stream(), signal)
  const root = images.pathOf(images.resolve('tiny'))
  return bedOf(talon(), (folder) => {
    mkdirSync(folder, { recursive: true })
    const kernel = join(folder, 'kernel'), overlay = join(folder, 'overlay.img')
    try { linkSync(vmlinux, kernel) } catch { copyFileSync(vmlinux, kernel) }
    writeTemplate(overlay, 128)
    return Promise.resolve({ kernel, initramfs, disks: [{ path: root, readOnly: true, serial: 'root' }, { path: overlay, readOnly: false, serial: 'overlay' }] })
  }, () => { store.$client.close(); rmSync(state, { recursive: true, force: true }) })
}

const status = (machine: Machine, field: string): string =>
  new RegExp(`^${field}:[ \\t]*(.*)$`, 'm').exec(readFileSync(`/proc/${machine.identity.process.pid}/status`, 'utf8'))?.[1] ?? ''

const namespaceOf = (pid: number | string, name: string): string => readdirSync(`/proc/${pid}/ns`).includes(name) ? Bun.spawnSync(['readlink', `/proc/${pid}/ns/${name}`]).stdout.toString() : ''

if (missing !== undefined) describe('the talon driver', () => { test.skip(`passes the suite of hypervisors (${missing})`, () => { expect(missing).toBeUndefined() }) })
else {
  hypervisorSuite('talon', openBed, { bootMs: BOOT_MS })

  describe('talon', () => {
    test('a machine is another user in namespaces of its own, without a capability, a file or an unfiltered call', async () => {
      await using bed = await openBed()
      const uid = 0x4165_1234, spec = { ...await bed.spec(), jail: { uid, gid: uid, groups: [0] } }
      Bun.spawnSync(['chmod', '711', join(spec.folder, '../..')])
      const machine = await bed.driver.start(spec, soon()), { pid } = machine.identity.process
      try {
        expect(status(machine, 'Uid')).toBe([uid, uid, uid, uid].join('\t'))
        expect(status(machine, 'Groups').trim()).toBe('')
        for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapAmb']) expect(BigInt(`0x${status(machine, set)}`)).toBe(0n)
        expect([status(machine, 'NoNewPrivs'), status(machine, 'Seccomp')]).toEqual(['1', '2'])
        for (const name of ['user', 'mnt', 'net', 'pid', 'ipc']) expect(namespaceOf(pid, name)).not.toBe(namespaceOf('self', name))
        expect(readdirSync(`/proc/${pid}/root`)).toEqual(['vsock'])
        expect(status(machine, 'NSpid')).toBe(`${pid}\t1`)
      } finally { await machine.kill() }
      expect(marked(spec.mark)).toEqual([])
    }, BOOT_MS)

    test('a guest that panics has panicked, and its console says of what', async () => {
      await using bed = await openBed()
      const spec = { ...await bed.spec(), cmdline: 'console=ttyS0 panic=-1 reboot=t rdinit=/nowhere root=/dev/nowhere' }
      const machine = await bed.driver.start(spec, soon())
      try {
        expect(await machine.ended).toMatchObject({ reason: 'panic', message: expect.stringContaining('root') as unknown })
        expect(await machine.state(soon())).toBe('ended')
        const late = await bed.driver.adopt(machine.identity, soon())
        expect(await late?.ended).toMatchObject({ reason: 'panic' })
        await late?.kill()
      } finally { await machine.kill() }
    }, BOOT_MS)

    test('what talon refuses is told with its reason', async () => {
      await using bed = await openBed()
      const spec = await bed.spec()

      await expect(bed.driver.start({ ...spec, memoryMib: 16 }, soon())).rejects.toMatchObject({ code: 'machine_failed', message: expect.stringContaining('32 MiB') as unknown })
      await expect(bed.driver.start({ ...spec, nic: { kind: 'user', mac: '02:00:00:00:00:01' } }, soon())).rejects.toMatchObject({ code: 'hypervisor_unavailable' })

      expect(marked(spec.mark)).toEqual([])
    }, BOOT_MS)
  })
}
