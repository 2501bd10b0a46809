import type { Vm, VmUpdate } from '../contract/vm.ts'
import type { VmSpec } from '../contract/vm-spec.ts'
import type { Host } from '../host.ts'
import { requestInvalid } from '../lib/errors.ts'
import {
  forgetPort,
  keepPorts,
  type HeldPort,
  holdPorts,
  letGo,
  readPublished,
  recordPorts,
  sayPublished,
} from '../network/ports.ts'
import { checkEgress } from '../network/settings.ts'
import { setEgress } from '../network/leases.ts'
import type { PortRow, VmRow } from '../store/schema.ts'
import { immediate } from '../store/store.ts'
import { hasTaps } from './row/cards.ts'
import { find } from './row/lookup.ts'
import { change } from './row/moves.ts'
import { checkPublishes } from './row/published.ts'
import { view } from './row/view.ts'

/**
 * Changes what of a vm may change while it runs: the ports that it publishes, what its first card may reach, how fast its
 * cards are. Ports that stay are not let go of for a moment. Order of effects: new ports are held → row → ports that are no longer
 * wanted are let go, new ones lead into the vm, rules and limits change.
 *
 * @throws `vm_not_found`, `port_in_use`, `port_denied`, `request_invalid`
 */
export const update = async (host: Host, ref: string, want: VmUpdate): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.vms.queue.run(uid, async () => {
    const row = find(host.store, uid)
    if (want.egress !== undefined && !hasTaps(row))
      throw requestInvalid({ field: 'egress', reason: 'the vm has no card in a network' })
    if (want.egress !== undefined) checkEgress(want.egress, (reason) => requestInvalid({ field: 'egress', reason }))
    const { held, gone, published } = holdNew(host, row, want)
    try {
      immediate(host.store, (tx) => {
        for (const one of gone) forgetPort(tx, one)
        recordPorts(tx, uid, held)
        if (want.egress !== undefined) setEgress(tx, uid, want.egress)
        change(tx, uid, { spec: specOf(row, want, published) })
      })
    } catch (error) {
      letGo(held)
      throw error
    }
    host.daemon.step('updated')
    await host.networks.unpublish(host.networks.homeOf(uid), gone)
    await host.networks.publish(uid, held)
    host.networks.refresh(uid)
    return view(find(host.store, uid))
  })
}

/** Holds the ports that the vm does not publish yet, and tells which it is to let go of. */
const holdNew = (
  host: Pick<Host, 'store' | 'networks'>,
  row: VmRow,
  { publish }: VmUpdate,
): { readonly held: HeldPort[]; readonly gone: PortRow[]; readonly published: readonly string[] } => {
  if (publish === undefined) return { held: [], gone: [], published: row.spec.publish }
  checkPublishes({ publish }, host.networks.homeOf(row.uid))
  const { kept, gone, missing } = keepPorts(host.store, row.uid, readPublished(publish))
  const held = holdPorts(host.store, missing)
  return { held, gone, published: sayPublished([...kept, ...held]) }
}

const specOf = ({ spec }: VmRow, want: VmUpdate, publish: readonly string[]): VmSpec => ({
  ...spec,
  publish,
  compute: {
    ...spec.compute,
    network_bandwidth_download: want.network_bandwidth_download ?? spec.compute.network_bandwidth_download,
    network_bandwidth_upload: want.network_bandwidth_upload ?? spec.compute.network_bandwidth_upload,
  },
  network: want.egress === undefined ? spec.network : { ...spec.network, egress: want.egress },
})
