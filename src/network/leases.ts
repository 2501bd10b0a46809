import { and, asc, eq, isNull, lt, sql } from 'drizzle-orm'
import { createHash, randomBytes } from 'node:crypto'
import { Egress } from '../contract/network.ts'
import { fill } from '../contract/schema.ts'
import { type LeaseRow, leases, type NetworkRow } from '../store/schema.ts'
import { isDuplicate, prepared, type Store } from '../store/store.ts'
import { inPrefix6, readPrefix6, readRange4, readV4, sayV4, sayV6 } from './address.ts'
import { networkAddressTaken, networkExhausted } from './errors.ts'

/** A name that comes back within this time of its deletion gets its address again. */
const GRACE_MS = 10 * 60_000
/** So many generated addresses that were taken, one after the other, are no chance any more. */
const CHANCES = 20

/** What shall have a card in a network. */
export interface Wanted {
  readonly kind: 'vm' | 'container'
  readonly name: string
  /** The vm's; absent for a container. */
  readonly vmUid: string | null
  readonly nic: number
  readonly mode: 'bridged' | 'dhcp'
  readonly link: string
  readonly mac?: string | undefined
  /** The IPv4 address that was asked for. */
  readonly address?: string | undefined
  readonly egress?: Egress | undefined
}

/** Makes a locally administered unicast address (IEEE 802, bit 1 of the first octet). */
export const newMac = (): string =>
  `02:${[...randomBytes(5)].map((byte) => byte.toString(16).padStart(2, '0')).join(':')}`

/**
 * Names the host's end of a card: `tap-` and what of the vm's id is random, and the number of the card; 15 bytes at
 * most.
 */
export const tapName = (vmUid: string, nic: number): string =>
  `tap-${vmUid.slice(-9)}${nic === 0 ? '' : nic.toString(36)}`

/**
 * Names the two ends of a container's pair: `veth-…-h` in the bridge, `veth-…-c` in the container; 15 bytes at most.
 */
export const vethNames = (
  networkUid: string,
  container: string,
): { readonly host: string; readonly inside: string } => {
  const mark = createHash('sha256').update(`${networkUid}/${container}`).digest('hex').slice(0, 8)
  return { host: `veth-${mark}-h`, inside: `veth-${mark}-c` }
}

/** What can be given out: the pool without the gateway. Empty for a network without addresses. */
export const poolOf = (network: NetworkRow): { readonly start: number; readonly end: number } | undefined => {
  const { pool } = network.spec
  const start = pool && readV4(pool.start)
  const end = pool && readV4(pool.end)
  return start != null && end != null ? { start, end } : undefined
}

/** How many addresses a network can give out. */
export const poolSize = (network: NetworkRow): number => {
  const pool = poolOf(network)
  const gateway = network.gateway === null ? undefined : readV4(network.gateway)
  if (!pool) return 0
  return pool.end - pool.start + 1 - (gateway !== undefined && gateway >= pool.start && gateway <= pool.end ? 1 : 0)
}

const ofNetwork = (tx: Store, network: NetworkRow): LeaseRow[] => leasesIn(tx, network.uid)

/**
 * Gives a vm or a container its card in a network: the address that it asks for, that is reserved for its name, or that
 * its name had a moment ago, else the first that is free. Call it in the transaction that makes its owner.
 *
 * @throws `network_exhausted`, `network_address_taken`
 */
export const allocate = (tx: Store, network: NetworkRow, wanted: Wanted): LeaseRow => {
  tx.delete(leases)
    .where(lt(leases.releasedAt, Date.now() - GRACE_MS))
    .run()
  const address = network.subnet === null ? null : choose(tx, network, wanted)
  const { mac, name, kind, vmUid, nic, mode, link } = wanted
  const row = {
    networkUid: network.uid,
    kind,
    name,
    vmUid,
    nic,
    mode,
    link,
    address,
    address6: address === null ? null : address6Of(network, address),
    egress: wanted.egress ? fill(Egress, wanted.egress) : null,
    createdAt: Date.now(),
  }
  for (let attempt = 0; ; attempt++) {
    try {
      return tx
        .insert(leases)
        .values({ ...row, mac: mac ?? newMac() })
        .returning()
        .get()
    } catch (error) {
      if (mac === undefined && isDuplicate(error, 'leases.mac') && attempt < CHANCES) continue
      if (mac !== undefined && isDuplicate(error, 'leases.mac'))
        throw networkAddressTaken({ address: mac, network: network.name, by: 'another card has this MAC address' })
      throw error
    }
  }
}

/** The IPv6 address that goes with an IPv4 address of the same network: it ends in the same number. */
const address6Of = (network: NetworkRow, address: number): string | null => {
  const prefix = network.subnet6 === null ? undefined : readPrefix6(network.subnet6)
  const range = network.subnet === null ? undefined : readRange4(network.subnet)
  return prefix && range ? sayV6(inPrefix6(prefix, address - range.first)) : null
}

/** Picks the address, and takes what stands in its way: the lease of a name that is gone. */
const choose = (tx: Store, network: NetworkRow, wanted: Wanted): number => {
  const held = new Map(
    ofNetwork(tx, network).flatMap((lease) => (lease.address === null ? [] : [[lease.address, lease] as const])),
  )
  const reserved = new Map(Object.entries(network.spec.reservations).map(([name, text]) => [readV4(text) ?? -1, name]))
  const take = (address: number): number => {
    const old = held.get(address)
    if (old) tx.delete(leases).where(eq(leases.id, old.id)).run()
    return address
  }
  const isHeld = (address: number): boolean => held.get(address)?.releasedAt === null
  const own = [...reserved].find(([, name]) => name === wanted.name && wanted.nic === 0)?.[0]

  if (wanted.address !== undefined) {
    const address = readV4(wanted.address)
    const reason = address === undefined ? 'it is no IPv4 address' : unfit(network, address)
    const owner = address === undefined ? undefined : reserved.get(address)
    const by =
      reason ??
      (owner !== undefined && owner !== wanted.name ? `it is reserved for "${owner}"` : undefined) ??
      (address !== undefined && isHeld(address) ? `"${held.get(address)?.name}" has it` : undefined)
    if (by !== undefined || address === undefined)
      throw networkAddressTaken({ address: wanted.address, network: network.name, by: by ?? '' })
    return take(address)
  }
  if (own !== undefined) {
    if (isHeld(own))
      throw networkAddressTaken({ address: sayV4(own), network: network.name, by: `"${held.get(own)?.name}" has it` })
    return take(own)
  }
  const before = [...held.values()].find(
    ({ releasedAt, name, kind, nic, address }) =>
      releasedAt !== null &&
      name === wanted.name &&
      kind === wanted.kind &&
      nic === wanted.nic &&
      !reserved.has(address ?? -1),
  )
  if (before?.address != null) return take(before.address)

  const pool = poolOf(network)
  const gateway = network.gateway === null ? undefined : readV4(network.gateway)
  let old: LeaseRow | undefined
  for (let address = pool?.start ?? 1; address <= (pool?.end ?? 0); address++) {
    if (address === gateway || reserved.has(address)) continue
    const lease = held.get(address)
    if (lease === undefined) return address
    if (lease.releasedAt !== null && (old?.releasedAt ?? Number.POSITIVE_INFINITY) > lease.releasedAt) old = lease
  }
  if (old?.address != null) return take(old.address) // nobody waits for a name that may come back
  throw networkExhausted({ name: network.name, total: poolSize(network), used: held.size })
}

/** Why an address cannot be anybody's in a network; undefined where it can. */
export const unfit = (network: Pick<NetworkRow, 'subnet' | 'gateway'>, address: number): string | undefined => {
  const range = network.subnet === null ? undefined : readRange4(network.subnet)
  if (!range || address < range.first || address > range.last) return `it is outside of ${network.subnet}`
  if (address === range.first) return 'it is the address of the network itself'
  if (address === range.last) return 'it is the broadcast address'
  return network.gateway !== null && address === readV4(network.gateway) ? 'it is the gateway' : undefined
}

/** What a lease is of which only the address is kept: the link and the MAC address are free again. */
const released = () => ({
  vmUid: null,
  releasedAt: Date.now(),
  link: sql`'-' || ${leases.id}`,
  mac: sql`'-' || ${leases.id}`,
})

/**
 * Lets go of what a vm had; its name gets its addresses again if it comes back soon. Call it in the transaction that
 * deletes the vm.
 */
export const release = (tx: Store, vmUid: string): void => {
  tx.delete(leases)
    .where(and(eq(leases.vmUid, vmUid), isNull(leases.address)))
    .run()
  tx.update(leases).set(released()).where(eq(leases.vmUid, vmUid)).run()
}

/** Lets go of what a container had; its name gets its address again if it comes back soon. */
export const releaseContainer = (tx: Store, { id }: LeaseRow): void => {
  tx.update(leases).set(released()).where(eq(leases.id, id)).run()
}

const selectOfVm = prepared((store) =>
  store
    .select()
    .from(leases)
    .where(eq(leases.vmUid, sql.placeholder('vmUid')))
    .orderBy(asc(leases.nic))
    .prepare(),
)
const selectOfNetwork = prepared((store) =>
  store
    .select()
    .from(leases)
    .where(eq(leases.networkUid, sql.placeholder('networkUid')))
    .orderBy(asc(leases.address))
    .prepare(),
)

/** Reads the cards of a vm, in their order. */
export const leasesOf = (store: Store, vmUid: string): LeaseRow[] => selectOfVm(store).all({ vmUid })

/** Reads who is in a network, the names that may come back too. */
export const leasesIn = (store: Store, networkUid: string): LeaseRow[] => selectOfNetwork(store).all({ networkUid })

/** Changes what the first card of a vm may reach. */
export const setEgress = (tx: Store, vmUid: string, egress: Egress): void => {
  tx.update(leases)
    .set({ egress: fill(Egress, egress) })
    .where(and(eq(leases.vmUid, vmUid), eq(leases.nic, 0)))
    .run()
}

/** Reads who is in a network now. */
export const membersOf = (store: Store, networkUid: string): LeaseRow[] =>
  leasesIn(store, networkUid).filter(({ releasedAt }) => releasedAt === null)
