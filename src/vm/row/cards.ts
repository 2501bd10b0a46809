import { eq } from 'drizzle-orm'
import type { VmCard, VmNetwork, VmSpec } from '../../contract/vm-spec.ts'
import type { Host } from '../../host.ts'
import { requestInvalid } from '../../lib/errors.ts'
import { Fault } from '../../lib/fault.ts'
import { sayV4 } from '../../network/address.ts'
import { networkInvalid } from '../../network/errors.ts'
import { DEFAULT_NETWORK } from '../../network/networks.ts'
import { checkEgress } from '../../network/settings.ts'
import { allocate, tapName } from '../../network/leases.ts'
import { type LeaseRow, type NetworkRow, type VmRow, vms } from '../../store/schema.ts'
import type { Store } from '../../store/store.ts'

type CardHost = Pick<Host, 'config' | 'log' | 'networks'>

/** Tells how a vm is connected that asks for nothing: by the default network where this daemon can have one. */
export const defaultCard = async (host: CardHost): Promise<VmNetwork> => {
  const { default_network: choice, mode } = host.config
  if (choice === 'vsock') return { mode: 'vsock' }
  if (choice !== 'auto') return { mode: 'bridged', network: choice }
  if (mode === 'user') return { mode: 'vsock' }
  try {
    await host.networks.default()
    return { mode: 'bridged' }
  } catch (error) {
    if (!(error instanceof Fault) || error.code !== 'network_unable') throw error
    host.log.warn({ reason: error.message }, 'vms that ask for no network get none')
    return { mode: 'vsock' }
  }
}

/** Makes the default network where a card is in it and it is not there yet. @throws `network_unable`, `network_conflict` */
export const ensureDefault = async (
  host: CardHost,
  { network, nics }: Pick<VmSpec, 'network' | 'nics'>,
): Promise<void> => {
  const isInIt = (card: VmNetwork | VmCard): boolean =>
    needsTap(card) && (card.network === undefined || card.network === DEFAULT_NETWORK)
  if ([network, ...nics].some(isInIt)) await host.networks.default()
}

/** One card of a vm that is to be, with its network. */
export interface Planned {
  readonly card: VmNetwork | VmCard
  readonly network: NetworkRow
}

/** Whether the host makes a link for a card: Volant's `needsTapDevice`. */
export const needsTap = ({ mode }: Pick<VmNetwork, 'mode'>): boolean => mode === 'bridged' || mode === 'dhcp'

/** Whether a vm has a card that is a link of the host's. */
export const hasTaps = ({ spec }: { readonly spec: Pick<VmSpec, 'network' | 'nics'> }): boolean =>
  [spec.network, ...spec.nics].some(needsTap)

/**
 * Finds the networks of a vm's cards.
 *
 * @throws `network_not_found`, `network_ambiguous`, `network_unable`, `request_invalid`
 */
export const planCards = (host: CardHost, { network, nics }: Pick<VmSpec, 'network' | 'nics'>): Planned[] => {
  const named = network.network ?? network.ip_address ?? network.mac_address ?? network.egress
  if (!needsTap(network) && (nics.length > 0 || (named !== undefined && network.mode !== 'user')))
    throw requestInvalid({ field: 'network', reason: `mode "${network.mode}" has no card of a network` })
  return [network, ...nics].filter(needsTap).map((card) => {
    const found = host.networks.find(card.network ?? DEFAULT_NETWORK, 'read')
    if (found.subnet === null && card.ip_address !== undefined)
      throw networkInvalid({ name: found.name, reason: 'it gives out no addresses', hint: 'Leave the address out' })
    if (card.egress !== undefined)
      checkEgress(card.egress, (reason) => requestInvalid({ field: 'network.egress', reason }))
    return { card, network: found }
  })
}

/**
 * Gives a vm its cards: addresses are reserved, and written into what the vm is. Call it in the transaction that makes the vm.
 *
 * @throws `network_exhausted`, `network_address_taken`
 */
export const giveCards = (tx: Store, row: VmRow, planned: readonly Planned[]): VmRow => {
  if (planned.length === 0) return row
  const given = planned.map(({ card, network }, nic) => {
    const lease = allocate(tx, network, {
      kind: 'vm',
      name: row.name,
      vmUid: row.uid,
      nic,
      mode: card.mode === 'dhcp' ? 'dhcp' : 'bridged',
      link: tapName(row.uid, nic),
      mac: card.mac_address?.toLowerCase() ?? (nic === 0 ? row.mac : undefined),
      address: card.ip_address,
      egress: card.egress,
    })
    return { lease, card: { ...card, network: network.name, ...addressesOf(lease) } }
  })
  const [first, ...others] = given
  const spec: VmSpec = {
    ...row.spec,
    network: first?.card ?? row.spec.network,
    nics: others.map(({ card }) => card as VmCard),
  }
  const { mac = row.mac } = first?.lease ?? {}
  const ip = first?.card.ip_address ?? ''
  tx.update(vms).set({ spec, mac, ip }).where(eq(vms.uid, row.uid)).run()
  return { ...row, spec, mac, ip }
}

const addressesOf = ({ address, address6, mac }: LeaseRow) => ({
  mac_address: mac,
  ...(address !== null && { ip_address: sayV4(address) }),
  ...(address6 !== null && { ip6_address: address6 }),
})

/** Makes the cards of a clone: in the same networks, with addresses of their own. */
export const cardsOfClone = ({ network, nics }: Pick<VmSpec, 'network' | 'nics'>): Pick<VmSpec, 'network' | 'nics'> => {
  const bare = <T extends VmNetwork | VmCard>({ ip_address: _, ip6_address: __, mac_address: ___, ...card }: T): T =>
    card as T
  return { network: bare(network), nics: nics.map(bare) }
}
