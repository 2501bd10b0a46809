import type { Vm } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { after } from '../contract/vm-state.ts'
import { vmWrongState } from './errors.ts'
import { find, move, view } from './record.ts'

/** The machine does it first, then the row says so: a daemon that dies in between reads the machine's own state at its next start. */
const turn = async (host: Host, ref: string, verb: 'pause' | 'resume'): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.queue.run(uid, async () => {
    const row = find(host.store, uid), live = host.live.get(uid)
    if (!after(row.state, verb) || !live?.machine) throw vmWrongState({ name: row.name, status: row.state, verb })
    await live.machine[verb](AbortSignal.timeout(10_000))
    return view(move(host.store, host.events, uid, verb))
  })
}

/** @throws `vm_wrong_state` */
export const pause = (host: Host, ref: string): Promise<Vm> => turn(host, ref, 'pause')
/** @throws `vm_wrong_state` */
export const resume = (host: Host, ref: string): Promise<Vm> => turn(host, ref, 'resume')
