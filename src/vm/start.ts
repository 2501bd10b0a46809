import type { Vm, VmStart } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { powerOn } from './machine/power-on.ts'
import { restoreSaved } from './machine/restored.ts'
import { find } from './row/lookup.ts'

/**
 * Starts a stopped or crashed vm; what the request says of the workload replaces what was. A vm in standby runs on from
 * where it stood.
 *
 * @throws `vm_wrong_state`, `capacity_exhausted`, `vm_restore_failed`, `vm_start_failed` (the row stays, `crashed`,
 * with the reason)
 */
export const start = async (host: Host, ref: string, want: VmStart): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.vms.queue.run(uid, async () =>
    find(host.store, uid).state === 'standby' && Object.keys(want).length === 0
      ? await restoreSaved(host, uid)
      : await powerOn(host, uid, want),
  )
}
