import { talon } from '../../src/hypervisor/drivers/talon.ts'

export default talon()
