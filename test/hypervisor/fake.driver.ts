import { fake } from '../../src/hypervisor/drivers/fake.ts'

export default fake()
