import { join } from 'node:path'
import { kvmSupport } from '../../src/linux/kvm.ts'
import { hypervisorSuite, skippedSuite } from '../conformance/hypervisor.ts'
import { kernelBed, kernelMissing } from './kernel-bed.ts'
import talon from './talon.driver.ts'

const support = kvmSupport()
const missing = support.usable ? kernelMissing : support.reason

if (missing === undefined)
  hypervisorSuite(talon, () => kernelBed(talon, join(import.meta.dir, 'talon.driver.ts')), { bootMs: 30_000 })
else skippedSuite('talon', missing)
