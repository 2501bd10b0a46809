import { join } from 'node:path'
import { hypervisorSuite, skippedSuite } from '../conformance/hypervisor.ts'
import { kernelBed, kernelMissing } from './kernel-bed.ts'
import qemu from './qemu.driver.ts'

const missing =
  kernelMissing ?? (Bun.which('qemu-system-x86_64') === null ? 'qemu-system-x86_64 is not installed' : undefined)

if (missing === undefined)
  hypervisorSuite(qemu, () => kernelBed(qemu, join(import.meta.dir, 'qemu.driver.ts')), { bootMs: 60_000 })
else skippedSuite('qemu', missing)
