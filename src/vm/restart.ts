import type { Vm, VmStop } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { powerOn } from './machine/power-on.ts'
import { shutDown } from './machine/shutdown.ts'
import { find } from './row/lookup.ts'

/** Stops a vm that runs, and starts it again. */
export const restart = async (host: Host, ref: string, want: VmStop): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.vms.queue.run(uid, async () => {
    const row = find(host.store, uid)
    if (row.state === 'running' || row.state === 'paused' || row.state === 'unknown') await shutDown(host, uid, want)
    return await powerOn(host, uid, {})
  })
}
