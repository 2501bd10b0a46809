import { driverOf } from '../../src/hypervisor/drivers/qemu/start.ts'

/** Under TCG: a test runs wherever QEMU is. */
export default driverOf({ program: Bun.which('qemu-system-x86_64') ?? 'qemu-system-x86_64', accelerator: 'tcg' })
