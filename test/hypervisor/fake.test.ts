import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { hypervisorSuite } from '../conformance/hypervisor.ts'
import { bedOf } from './bed.ts'
import fake from './fake.driver.ts'

hypervisorSuite(
  fake,
  () =>
    Promise.resolve(
      bedOf(fake, join(import.meta.dir, 'fake.driver.ts'), (folder) => {
        const kernel = join(folder, 'kernel')
        const initramfs = join(folder, 'initramfs')
        writeFileSync(kernel, '')
        writeFileSync(initramfs, '')
        return Promise.resolve({ kernel, initramfs, disks: [] })
      }),
    ),
  { bootMs: 10_000 },
)
