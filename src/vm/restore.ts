import type { Vm } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { restoreSaved } from './machine/restored.ts'
import { find } from './row/lookup.ts'

/**
 * Wakes a vm in standby. Order of effects:
 *
 *   `paused`, its agent to be told who it is → a paused machine of what was saved → `machine` in the row → processors run → the agent
 *   acknowledges → `running`, and the row names nothing saved any more → its files lose their names
 *
 * What was saved is let go only when the guest stands. Whatever is cut short or fails before is `standby` again as long
 * as the guest has written nothing to its disk, which it cannot before the agent thaws it. A guest that has, and does
 * not acknowledge, is paused and kept: its disk is no longer what the memory believes, so what was saved goes, and
 * `resume` tries again.
 *
 * @throws `vm_wrong_state`, `capacity_exhausted`, `hypervisor_unavailable`, `vm_restore_failed`, `agent_unavailable`
 */
export const restore = async (host: Host, ref: string): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.vms.queue.run(uid, () => restoreSaved(host, uid))
}
