import type { GuestNic, OneNic } from '../../guest/session.ts'
import type { NicSpec } from '../../hypervisor/driver.ts'
import type { VmCard, VmNetwork } from '../../contract/vm-spec.ts'
import { leasesOf } from '../../network/leases.ts'
import { gateway6Of, lengthOf } from '../../network/network-row.ts'
import type { VmRow } from '../../store/schema.ts'
import { needsTap } from '../row/cards.ts'
import type { GuestHost, GuestOf, Part, PartHost } from './part.ts'

/** What a guest finds behind QEMU's user network, always (its documentation, "-netdev user"). */
const USER: GuestNic = { address: '10.0.2.15/24', gateway: '10.0.2.2', dns: ['10.0.2.3'] }

/** Makes what the agent is told of one card of a network. */
const guestNic = (host: GuestHost, card: VmNetwork | VmCard, first: boolean): GuestNic => {
  const network = host.networks.find(card.network ?? '', 'read')
  const mac = card.mac_address
  const known = { ...(mac !== undefined && { mac }), mtu: network.mtu }
  if (card.ip_address === undefined) return { ...known, ...(network.type === 'macvtap' && { dhcp: true }) }
  const gateway6 = gateway6Of(network)
  const hasWayOut = first && network.type !== 'isolated'
  const six = {
    ...(card.ip6_address !== undefined && { address6: `${card.ip6_address}/64` }),
    ...(hasWayOut && gateway6 !== null && card.ip6_address !== undefined && { gateway6 }),
  }
  if (card.mode === 'dhcp') return { ...known, ...six, dhcp: true }
  return {
    ...known,
    address: `${card.ip_address}/${lengthOf(network)}`,
    ...six,
    ...(hasWayOut && network.gateway !== null && { gateway: network.gateway }),
    ...(network.gateway !== null && { dns: [network.gateway] }),
    search: [`${network.name}.aerie`],
  }
}

/** Makes what the agent of a vm is told of its cards. */
const guestNics = (host: GuestHost, { spec }: Pick<GuestOf, 'spec'>): readonly GuestNic[] => {
  if (spec.network.mode === 'user') return [USER]
  return [spec.network, ...spec.nics].filter(needsTap).map((card, index) => guestNic(host, card, index === 0))
}

const oneNic = ({ spec }: Pick<GuestOf, 'spec'>): OneNic => ({ mode: spec.network.mode === 'user' ? 'user' : 'none' })

/** Makes what the agent of a restored guest is told, whose cards have the addresses of the guest that was saved. */
export const identityNics = (
  host: GuestHost,
  row: VmRow,
): { readonly network: OneNic; readonly nics: readonly GuestNic[] } => ({
  network: { ...oneNic(row), mac: row.mac },
  nics: guestNics(host, row).map((nic, index) => (index === 0 ? { mac: row.mac, ...nic } : nic)),
})

/** Makes the links of a vm's cards as the driver asks for them. */
const taps = (host: PartHost, row: VmRow): NicSpec[] =>
  leasesOf(host.store, row.uid).map((lease) => {
    const network = host.networks.byUid(lease.networkUid)
    if (!network) throw new Error('a network has gone that is in use')
    return {
      kind: 'tap',
      mac: lease.mac,
      mtu: network.mtu,
      open: (queues) => host.networks.openTap(network, lease, queues),
    }
  })

/** Brings the vm's network cards, where its network has any. */
export const nics: Part = {
  name: 'network cards',
  make: (host, row) => ({
    nics: row.spec.network.mode === 'user' ? [{ kind: 'user', mac: row.mac }] : taps(host, row),
  }),
  unmake: (host, row) => {
    for (const lease of leasesOf(host.store, row.uid)) host.networks.closeTap(lease)
  },
  guest: (vm, host) => ({ network: oneNic(vm), nics: guestNics(host, vm) }),
}
