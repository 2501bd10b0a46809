import { networkEvents } from '../contract/network.ts'
import { chain } from '../lib/fault.ts'
import type { Log } from '../lib/log.ts'
import { immediate, type Store } from '../store/store.ts'
import type { HostLinks } from './host-links.ts'
import { membersOf } from './leases.ts'
import { type Bridged, hasBridge } from './network-row.ts'
import type { NetworkRow } from '../store/schema.ts'
import type { NetworkService } from './service/network-service.ts'

/** What a repair works on. */
export interface RepairHost {
  readonly store: Store
  readonly links: HostLinks
  readonly service: NetworkService
  readonly log: Log
}

/**
 * Compares the links of networks with their rows, and puts back what is missing: bridges, their addresses and MTU, and
 * the ports of vms that run. One network that cannot be mended keeps no other from it.
 */
export const repairNetworks = async (host: RepairHost, there: () => readonly NetworkRow[]): Promise<void> => {
  for (const { uid } of there()) {
    const row = there().find((one) => one.uid === uid) // it may have gone while another was repaired
    if (!row || !hasBridge(row)) continue
    try {
      await repairNetwork(host, row)
    } catch (error) {
      host.log.error({ network: row.name, reasons: chain(error) }, 'cannot repair a network')
    }
  }
}

const repairNetwork = async ({ store, links, service, log }: RepairHost, row: Bridged): Promise<void> => {
  service.firewallOf(row) // no port comes into a bridge that nobody guards
  const ports = membersOf(store, row.uid).map(({ link }) => link)
  const { anew, said } = links.repair(row, ports)
  if (said.length === 0) return
  // What the helper listens on went with the bridge, and so did what the kernel was told of it.
  if (anew) await service.renew(row)
  log.warn({ network: row.name, repaired: said }, 'a network was repaired')
  immediate(store, (tx) => {
    tx.events.append(tx, networkEvents, {
      type: 'NETWORK_REPAIRED',
      name: row.name,
      uid: row.uid,
      data: { subnet: row.subnet ?? '' },
    })
  })
}
