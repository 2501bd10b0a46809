import type { Vm } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { after } from '../contract/vm-state.ts'
import { vmWrongState } from './errors.ts'
import { letGo } from './hold.ts'
import { find, move, view } from './record.ts'
import { goOn } from './restore.ts'

/*
 * The machine does it first, then the row says so. A daemon that dies in between finds a machine that is not what its row says: a pause was
 * not answered and is taken back, a resume is completed.
 */

/** @throws `vm_wrong_state` */
export const pause = async (host: Host, ref: string): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.queue.run(uid, async () => {
    const row = find(host.store, uid)
    const machine = host.live.get(uid)?.machine
    if (!after(row.state, 'pause') || !machine) throw vmWrongState({ name: row.name, status: row.state, verb: 'pause' })
    await machine.pause(AbortSignal.timeout(10_000))
    return view(move(host.store, host.events, uid, 'pause'))
  })
}

/** @throws `vm_wrong_state`; `agent_unavailable` where a guest that was restored still does not acknowledge who it is */
export const resume = async (host: Host, ref: string): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.queue.run(uid, async () => {
    const row = find(host.store, uid)
    const live = host.live.get(uid)
    const machine = live?.machine
    if (!after(row.state, 'resume') || !machine)
      throw vmWrongState({ name: row.name, status: row.state, verb: 'resume' })
    if (row.identityDue) {
      await goOn(host, row, { live, machine })
      return view(find(host.store, uid))
    }
    await letGo(live, machine)
    return view(move(host.store, host.events, uid, 'resume'))
  })
}
