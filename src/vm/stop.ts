import type { Vm, VmStop } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { cancelBoot, shutDown } from './machine/shutdown.ts'
import { find } from './row/lookup.ts'

/**
 * Stops a vm: the agent ends the workload and powers off; without an agent the power button does; what is still there
 * after the grace and five seconds more is killed. With `kill: false` it stays, goes back to `running`, and the stop
 * fails.
 *
 * @throws `vm_wrong_state`, `stop_timeout`
 */
export const stop = async (host: Host, ref: string, want: VmStop): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  cancelBoot(host, uid, 'stop')
  return await host.vms.queue.run(uid, async () => await shutDown(host, uid, want))
}
