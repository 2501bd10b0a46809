import { after } from '../contract/vm-state.ts'
import type { Vm } from '../contract/vm.ts'
import { type HaltingHost, haltMachine } from './machine/halting.ts'
import { vmWrongState } from './row/errors.ts'
import { find } from './row/lookup.ts'
import { move } from './row/moves.ts'
import { view } from './row/view.ts'

/*
 * The machine does it first, then the row says so. A daemon that dies in between finds a machine that is not what its
 * row says: a pause was not answered and is taken back, a resume is completed.
 */

/** Halts a running vm; its memory stays in RAM. @throws `vm_wrong_state`, `machine_silent` */
export const pause = async (host: HaltingHost, ref: string): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.vms.queue.run(uid, async () => {
    const row = find(host.store, uid)
    const live = host.vms.live.get(uid)
    const machine = live?.machine
    if (!after(row.state, 'pause') || !machine) throw vmWrongState({ name: row.name, status: row.state, verb: 'pause' })
    await haltMachine(host, live, machine, 'pause')
    return view(move(host.store, uid, 'pause'))
  })
}
