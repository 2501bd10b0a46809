export { driver as default } from '../../src/hypervisor/drivers/fake/fake.ts'
