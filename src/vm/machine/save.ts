import type { Machine } from '../../hypervisor/driver.ts'
import { sleep } from '../../lib/promise.ts'
import { saveDeadline } from '../../snapshot/saving.ts'
import type { VmRow } from '../../store/schema.ts'
import { vmWrongState } from '../row/errors.ts'
import { stateOf } from './halting.ts'

/** How long after the VMM does not answer any more its process may be seen to end, ms. */
const ENDED_MS = 1000

const hasEnded = async (machine: Machine): Promise<boolean> => {
  const state = await stateOf(machine)
  if (state !== undefined) return state === 'ended'
  return await Promise.race([machine.ended.then(() => true), sleep(ENDED_MS).then(() => false)])
}

/**
 * Saves a machine that is paused. A guest may end by itself until the very moment that it is halted in: then there is
 * nothing to save, and what its row says in a moment is said.
 *
 * @throws `vm_wrong_state`; whatever else the driver throws
 */
export const saving = async <T>(
  vm: Pick<VmRow, 'name' | 'memoryMb'>,
  machine: Machine,
  verb: string,
  save: (deadline: AbortSignal) => Promise<T>,
): Promise<T> => {
  try {
    return await save(saveDeadline(vm))
  } catch (error) {
    if (await hasEnded(machine)) throw vmWrongState({ name: vm.name, status: 'stopped', verb }, error)
    throw error
  }
}
