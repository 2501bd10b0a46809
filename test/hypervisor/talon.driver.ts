export { driver as default } from '../../src/hypervisor/drivers/talon/talon.ts'
