import type { Vm } from '../contract/vm.ts'
import type { VmCreate } from '../contract/vm-spec.ts'
import type { Out } from './out.ts'

/** A text that leaves the port of the host to the daemon. */
const PICKED = /^(?:(?:\[.*\]|\d+(?:\.\d+){3}):)?(?:0:)?\d+(?:-\d+)?(?:\/\w+)?$/

/** Says which ports of the host were picked for a new vm, where its caller left that open. */
export const sayPicked = (out: Out, { publish = [] }: VmCreate, vm: Vm): void => {
  if (publish.some((text) => PICKED.test(text))) out.note(`vm "${vm.name}" publishes ${vm.publish.join(', ')}`)
}
