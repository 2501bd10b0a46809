import { copyFileSync, existsSync, linkSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { HypervisorDriver } from '../../src/hypervisor/driver.ts'
import { Images } from '../../src/image/images.ts'
import { Kernels } from '../../src/kernel/kernels.ts'
import { openStore } from '../../src/store/open.ts'
import { writeTemplate } from '../../src/volume/template.ts'
import type { Bed } from '../conformance/hypervisor.ts'
import { bedOf } from './bed.ts'

const deb = process.env['AERIE_TEST_KERNEL_DEB']

/** Why no guest can boot here; undefined where one can. */
export const kernelMissing =
  deb === undefined || !existsSync(deb) ? 'AERIE_TEST_KERNEL_DEB names no Debian package of a kernel' : undefined

/**
 * A kernel of Debian's and the smallest image there is, made as the daemon makes them; each machine boots from names of
 * its own.
 */
export const kernelBed = async (driver: HypervisorDriver, module: string): Promise<Bed> => {
  const state = mkdtempSync('/tmp/aerie-q-')
  const store = openStore(join(state, 'state.db'))
  const signal = AbortSignal.timeout(60_000)
  const kernels = new Kernels(store, state)
  const images = new Images(store, state)
  const { digest } = await kernels.import({}, Bun.file(deb ?? '').stream(), signal)
  const initramfs = await kernels.initramfs(digest)
  const image = driver.boots === 'vmlinux' ? await kernels.vmlinux(digest) : kernels.imageOf(digest)
  await images.import(
    { name: 'tiny' },
    new Blob([await new Bun.Archive({ 'etc/hostname': 'tiny\n' }).blob()]).stream(),
    signal,
  )
  const root = images.pathOf(images.resolve('tiny'))
  return bedOf(
    driver,
    module,
    (folder) => {
      mkdirSync(folder, { recursive: true })
      const kernel = join(folder, 'kernel')
      const overlay = join(folder, 'overlay.img')
      try {
        linkSync(image, kernel)
      } catch {
        copyFileSync(image, kernel)
      }
      writeTemplate(overlay, 128)
      return Promise.resolve({
        kernel,
        initramfs,
        disks: [
          { path: root, readOnly: true, serial: 'root' },
          { path: overlay, readOnly: false, serial: 'overlay' },
        ],
      })
    },
    () => {
      store.$client.close()
      rmSync(state, { recursive: true, force: true })
    },
  )
}
