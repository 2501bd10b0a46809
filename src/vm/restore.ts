import type { Vm } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { restoreSaved } from './machine/restored.ts'
import { find } from './row/lookup.ts'

/**
 * Wakes a vm in standby. Order of effects:
 *
 *   `paused`, its agent to be told who it is → a paused machine of what was saved → `machine` in the row → the row names nothing saved any
 *   more → its files lose their names → processors run → the agent acknowledges → `running`
 *
 * Until the row lets go of what was saved, no instruction of the guest has run: whatever is cut short or fails before is `standby` again.
 * After that a guest that does not acknowledge is paused and kept; `resume` tries again.
 *
 * @throws `vm_wrong_state`, `capacity_exhausted`, `hypervisor_unavailable`, `vm_restore_failed`, `agent_unavailable`
 */
export const restore = async (host: Host, ref: string): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.vms.queue.run(uid, () => restoreSaved(host, uid))
}
