import { after } from '../contract/vm-state.ts'
import type { Vm } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { unfreeze } from './machine/freeze.ts'
import { completeRestore } from './machine/restored.ts'
import { vmWrongState } from './row/errors.ts'
import { find } from './row/lookup.ts'
import { move } from './row/moves.ts'
import { view } from './row/view.ts'

/**
 * Lets a paused vm go on. @throws `vm_wrong_state`, `machine_silent`; `agent_unavailable` where a guest that was
 * restored still does not acknowledge who it is
 */
export const resume = async (
  host: Pick<Host, 'config' | 'daemon' | 'log' | 'networks' | 'snapshots' | 'store' | 'vms'>,
  ref: string,
): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.vms.queue.run(uid, async () => {
    const row = find(host.store, uid)
    const live = host.vms.live.get(uid)
    const machine = live?.machine
    if (!after(row.state, 'resume') || !machine)
      throw vmWrongState({ name: row.name, status: row.state, verb: 'resume' })
    if (row.boot.identityDue) {
      await completeRestore(host, row, { live, machine })
      return view(find(host.store, uid))
    }
    await unfreeze(host, live, machine, 'resume', 'running')
    return view(move(host.store, uid, 'resume'))
  })
}
