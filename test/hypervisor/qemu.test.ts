import { describe, expect, test } from 'bun:test'
import { copyFileSync, existsSync, linkSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { Images } from '../../src/image/images.ts'
import { Kernels } from '../../src/kernel/kernels.ts'
import { EventLog } from '../../src/store/events.ts'
import { openStore } from '../../src/store/store.ts'
import { writeTemplate } from '../../src/volume/template.ts'
import { hypervisorSuite, type Bed } from '../conformance/hypervisor.ts'
import { bedOf } from './bed.ts'
import qemu from './qemu.driver.ts'

const deb = process.env['AERIE_TEST_KERNEL_DEB']
const missing = Bun.which('qemu-system-x86_64') === null ? 'qemu-system-x86_64 is not installed'
  : deb === undefined || !existsSync(deb) ? 'AERIE_TEST_KERNEL_DEB names no Debian package of a kernel' : undefined

/** A kernel of Debian's and the smallest image there is, made as the daemon makes them; each machine boots copies of its own. */
const openBed = async (): Promise<Bed> => {
  const state = mkdtempSync('/tmp/aerie-q-'), store = openStore(join(state, 'state.db')), events = new EventLog(store), signal = AbortSignal.timeout(60_000)
  const kernels = new Kernels(store, events, state), images = new Images(store, events, state)
  const { digest } = await kernels.import({}, Bun.file(deb ?? '').stream(), signal), initramfs = await kernels.initramfs(digest)
  await images.import({ name: 'tiny' }, new Blob([await new Bun.Archive({ 'etc/hostname': 'tiny\n' }).blob()]).stream(), signal)
  const root = images.pathOf(images.resolve('tiny'))
  return bedOf(qemu, join(import.meta.dir, 'qemu.driver.ts'), (folder) => {
    mkdirSync(folder, { recursive: true })
    const kernel = join(folder, 'kernel'), overlay = join(folder, 'overlay.img')
    try { linkSync(kernels.imageOf(digest), kernel) } catch { copyFileSync(kernels.imageOf(digest), kernel) }
    writeTemplate(overlay, 128)
    return Promise.resolve({ kernel, initramfs, disks: [{ path: root, readOnly: true, serial: 'root' }, { path: overlay, readOnly: false, serial: 'overlay' }] })
  }, () => { store.$client.close(); rmSync(state, { recursive: true, force: true }) })
}

if (missing === undefined) hypervisorSuite('qemu', openBed, { bootMs: 60_000 })
else describe('the qemu driver', () => { test.skip(`passes the suite of hypervisors (${missing})`, () => { expect(missing).toBeUndefined() }) })
