import { qemu } from '../../src/hypervisor/drivers/qemu.ts'

/** Under TCG: a test runs wherever QEMU is. */
export default qemu({ program: Bun.which('qemu-system-x86_64') ?? 'qemu-system-x86_64', accelerator: 'tcg' })
