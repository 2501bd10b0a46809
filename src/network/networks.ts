import { closeSync, existsSync } from 'node:fs'
import { and, asc, eq, isNull, sql } from 'drizzle-orm'
import {
  Egress,
  type IpamFile,
  type Lease,
  type Network,
  NetworkCreate,
  type NetworkAttach,
  type NetworkDetail,
  networkEvents,
  type NetworkUpdate,
} from '../contract/network.ts'
import type { Port } from '../contract/port.ts'
import { fill } from '../contract/schema.ts'
import type { VmStats } from '../contract/stats.ts'
import { chain } from '../lib/fault.ts'
import { messageOf } from '../lib/thrown.ts'
import type { Log } from '../lib/log.ts'
import type { Config } from '../config.ts'
import { newId } from '../lib/id.ts'
import { ID_BEGINNING_MIN, lookUp, MATCHES_MAX, type Use } from '../lib/reference.ts'
import { hasCode } from '../linux/errno.ts'
import { type LeaseRow, leases, type NetworkRow, networks, type PortRow } from '../store/schema.ts'
import { immediate, prepared, type Store } from '../store/store.ts'
import { sayV4 } from './address.ts'
import {
  attachmentNotFound,
  networkAmbiguous,
  networkConflict,
  networkExists,
  networkInUse,
  networkInvalid,
  networkNotFound,
  networkUnable,
} from './errors.ts'
import { findContainer, leaseContainer, openNetns, setUpInside } from './attachments.ts'
import { HostLinks } from './host-links.ts'
import { type HeldPort, ledPorts, letGo } from './ports.ts'
import { type Bridged, gateway6Of, hasBridge } from './network-row.ts'
import { repairNetworks } from './repair.ts'
import { NetworkService } from './service/network-service.ts'
import { leasesIn, leasesOf, membersOf, newMac, poolSize, releaseContainer, vethNames } from './leases.ts'
import { checkEgress, checkReservations, settingsOf } from './settings.ts'

/** The network that a vm is in which asks for none. */
export const DEFAULT_NETWORK = 'default'

const selectDefault = prepared((store) =>
  store.select().from(networks).where(eq(networks.isDefault, true)).limit(1).prepare(),
)
const selectByUid = prepared((store) =>
  store
    .select()
    .from(networks)
    .where(eq(networks.uid, sql.placeholder('uid')))
    .prepare(),
)
const selectByName = prepared((store) =>
  store
    .select()
    .from(networks)
    .where(eq(networks.name, sql.placeholder('name')))
    .prepare(),
)

type Traffic = VmStats['network'][number]

/** What networks are made of. */
export interface NetworksHost {
  readonly store: Store
  readonly config: Pick<Config, 'cpu_oversubscription' | 'cpus' | 'run' | 'state'>
  readonly stateId: string
  readonly log: Log
  /** Ends the daemon here if the configuration says so: for crash tests. */
  readonly step: (name: string) => void
}

/** The networks of this host: their rows, and the links that make them true. */
export class Networks {
  readonly links: HostLinks
  readonly service: NetworkService
  readonly #store: Store
  readonly #log: Log
  readonly #step: (name: string) => void
  #looking = false
  #repairing = false
  /** The default network while it is made: two vms at once want one. */
  #making: Promise<Network> | undefined
  /** The networks that are not whole yet, or no more: nobody finds them, so that nobody gets a card in them. */
  readonly #hidden = new Map<string, Promise<unknown>>()

  constructor({ store, config, stateId, log, step }: NetworksHost) {
    this.#store = store
    this.links = new HostLinks(config.run)
    this.service = new NetworkService({ store, links: this.links, config, stateId, log })
    this.#log = log
    this.#step = step
  }

  /** Makes every network whole again, after the daemon or the host was away. One that cannot be is told in the log. */
  async start(): Promise<void> {
    await this.repair()
    for (const row of this.all()) {
      if (!hasBridge(row)) continue
      try {
        await this.service.bring(row)
      } catch (error) {
        this.#log.error({ network: row.name, reasons: chain(error) }, 'cannot bring a network up')
      }
    }
  }

  /** Looks at what no event tells. */
  async look(): Promise<void> {
    if (this.#looking) return
    this.#looking = true
    try {
      await this.service.look()
    } catch (error) {
      this.#log.error({ reasons: chain(error) }, 'cannot look after the networks')
    } finally {
      this.#looking = false
    }
  }

  /** Puts back what others took from the links of the networks. */
  async repair(): Promise<void> {
    if (this.#repairing) return
    this.#repairing = true
    try {
      await repairNetworks({ store: this.#store, links: this.links, service: this.service, log: this.#log }, () =>
        this.all().filter(({ uid }) => !this.#hidden.has(uid)),
      )
    } finally {
      this.#repairing = false
    }
  }

  close(): void {
    this.service.close()
    this.links[Symbol.dispose]()
  }

  /** @throws `network_exists`, `network_invalid`, `network_conflict`, `network_unable` */
  async create(want: NetworkCreate, isDefault = false): Promise<Network> {
    const filled = fill(NetworkCreate, want)
    const facts = this.#able(() => ({
      routed: this.links.routed(),
      uplinkMtu: this.links.uplinkMtu(),
      names: new Set(this.links.linksOf({ uid: '', type: 'bridged' }).map(({ name }) => name)),
    }))
    const row = immediate(this.#store, (tx) => {
      const others = tx.select().from(networks).all()
      if (others.some(({ name }) => name === want.name)) throw networkExists({ name: want.name })
      const { ranges, spec } = settingsOf(filled, { routed: facts.routed, networks: others })
      if (spec.parent !== null) this.#checkParent(want.name, spec.parent)
      const taken = new Set([...facts.names, ...others.map(({ bridge }) => bridge)])
      const made = tx
        .insert(networks)
        .values({
          uid: newId('net'),
          name: want.name,
          type: filled.type,
          isDefault,
          bridge: filled.type === 'macvtap' ? null : bridgeName(taken),
          ...ranges,
          mac: newMac(),
          mtu: want.mtu ?? facts.uplinkMtu,
          spec,
          createdAt: Date.now(),
        })
        .returning()
        .get()
      tx.events.append(tx, networkEvents, {
        type: 'NETWORK_CREATED',
        name: made.name,
        uid: made.uid,
        data: { subnet: made.subnet ?? '' },
      })
      return made
    })
    this.#step('network-recorded')
    await this.#hide(row, async () => {
      try {
        await this.#bring(row)
        this.#step('network-brought')
      } catch (error) {
        await this.#forget(row)
        throw error
      }
    })
    return this.#view(row)
  }

  /** The network of a vm that asks for none, made at its first use. @throws as `create` */
  async default(): Promise<void> {
    for (;;) {
      const known = selectDefault(this.#store).get()
      if (!known) break
      const settled = this.#hidden.get(known.uid)
      if (!settled) return
      await settled
    }
    if (!existsSync('/dev/net/tun'))
      throw networkUnable({ reason: 'it has no /dev/net/tun', hint: 'Load the module tun, or use --network vsock' })
    this.#making ??= this.create({ name: DEFAULT_NETWORK }, true).finally(() => {
      this.#making = undefined
    })
    await this.#making
  }

  list(): Network[] {
    return this.#store
      .select()
      .from(networks)
      .orderBy(asc(networks.name))
      .all()
      .map((row) => this.#view(row))
  }

  all(): NetworkRow[] {
    return this.#store.select().from(networks).all()
  }

  /** @throws `network_not_found`, `network_ambiguous` */
  get(ref: string): NetworkDetail {
    const row = this.find(ref, 'read')
    const members = leasesIn(this.#store, row.uid)
    const dropped = members.flatMap(({ link, releasedAt }) =>
      releasedAt === null && hasBridge(row) ? [[link, this.service.dropped(row, link)] as const] : [],
    )
    return { ...this.#view(row), leases: members.map(viewLease), dropped: Object.fromEntries(dropped) }
  }

  byUid(uid: string): NetworkRow | undefined {
    return selectByUid(this.#store).get({ uid })
  }

  /** @throws `network_not_found`, `network_ambiguous` */
  find(ref: string, use: Use = 'change', tx: Store = this.#store): NetworkRow {
    const seen = (rows: NetworkRow[]): NetworkRow[] => rows.filter(({ uid }) => !this.#hidden.has(uid))
    const select = (where: ReturnType<typeof sql>) =>
      seen(tx.select().from(networks).where(where).limit(MATCHES_MAX).all())
    return lookUp(
      ref,
      {
        exact: [() => seen(selectByUid(tx).all({ uid: ref })), () => seen(selectByName(tx).all({ name: ref }))],
        beginning: () =>
          new RegExp(`^net_[0-9a-z]{${ID_BEGINNING_MIN},20}$`).test(ref)
            ? select(sql`${networks.uid} GLOB ${`${ref}*`}`)
            : [],
        like: () => select(sql`substr(${networks.name}, 1, ${ref.length}) = ${ref}`).map(({ name }) => name),
        nameOf: ({ name }) => name,
        notFound: (name, meant) => networkNotFound({ name, meant: [...meant] }),
        ambiguous: (name, matches) => networkAmbiguous({ name, matches: [...matches] }),
      },
      use,
    )
  }

  /** @throws `network_not_found`, `network_ambiguous`, `network_invalid` */
  async update(ref: string, want: NetworkUpdate): Promise<Network> {
    const row = immediate(this.#store, (tx) => {
      const before = this.find(ref, 'change', tx)
      const spec = { ...before.spec, ...want, ...(want.egress && { egress: fill(Egress, want.egress) }) }
      const invalid = (reason: string, hint?: string) =>
        networkInvalid({ name: before.name, reason, ...(hint !== undefined && { hint }) })
      const { subnet, gateway } = before
      if (subnet !== null && gateway !== null) checkReservations({ subnet, gateway }, spec.reservations, invalid)
      else if (Object.keys(spec.reservations).length > 0) throw invalid('it gives out no addresses')
      checkEgress(spec.egress, invalid)
      const after = tx.update(networks).set({ spec }).where(eq(networks.uid, before.uid)).returning().get()
      tx.events.append(tx, networkEvents, {
        type: 'NETWORK_UPDATED',
        name: before.name,
        uid: before.uid,
        data: { subnet: subnet ?? '' },
      })
      return after
    })
    if (!row) throw new Error('the network has gone')
    await this.#bring(row)
    return this.#view(row)
  }

  /** @throws `network_not_found`, `network_ambiguous`, `network_in_use` */
  async delete(ref: string): Promise<void> {
    const row = immediate(this.#store, (tx) => {
      const found = this.find(ref, 'change', tx)
      const users = membersOf(tx, found.uid)
      if (users.length > 0)
        throw networkInUse({ name: found.name, users: users.map(({ kind, name }) => `${kind} "${name}"`) })
      return found
    })
    await this.#hide(row, () => this.#forget(row, true))
  }

  /** @throws as `create` */
  async import({ network, subnet, gateway, pool, reservations }: IpamFile): Promise<Network> {
    return await this.create({ name: network, subnet, gateway, pool, ...(reservations && { reservations }) })
  }

  /** @throws `network_not_found`, `network_ambiguous`, `network_invalid` */
  export(ref: string): IpamFile {
    const { name, subnet, gateway, spec } = this.find(ref, 'read')
    if (subnet === null || gateway === null || spec.pool === null)
      throw networkInvalid({ name, reason: 'it gives out no addresses' })
    return { network: name, subnet, gateway, pool: spec.pool, reservations: spec.reservations }
  }

  /** Makes a network what its row says. @throws `network_unable` */
  async #bring(row: NetworkRow): Promise<void> {
    if (!hasBridge(row)) return
    try {
      await this.service.bring(row)
    } catch (error) {
      throw unableOf(error)
    }
  }

  /** Makes the host's end of a card and opens it. @throws `network_unable` */
  openTap(row: NetworkRow, lease: LeaseRow, queues: number): number[] {
    return this.#able(() =>
      hasBridge(row)
        ? this.links.openTap(row, lease, queues, this.service.bandwidth(lease).download, () => {
            this.service.attach(row, lease)
            this.#step('port-guarded')
          })
        : this.links.openMacvtap(row, lease, queues),
    )
  }

  /** Makes rules and limits of a vm's cards that are there what its row says. */
  refresh(vmUid: string): void {
    for (const lease of leasesOf(this.#store, vmUid)) {
      const row = this.byUid(lease.networkUid)
      if (!row || !hasBridge(row)) continue
      this.#able(() => {
        if (!this.links.setDownload(row, lease.link, this.service.bandwidth(lease).download)) return
        this.service.attach(row, lease)
      })
    }
  }

  /** Leads ports of the host, which are held and written down, into a vm. */
  async publish(vmUid: string, held: readonly HeldPort[]): Promise<void> {
    const row = this.homeOf(vmUid)
    if (row) await this.service.publish(row, vmUid, held)
    else letGo(held)
  }

  /** Takes back what a vm published; `row` is its first card's network. */
  async unpublish(row: Bridged | undefined, gone: readonly PortRow[]): Promise<void> {
    if (row) await this.service.unpublish(row, gone)
  }

  /** The network of a vm's first card, where that stands on a bridge. */
  homeOf(vmUid: string): Bridged | undefined {
    const [first] = leasesOf(this.#store, vmUid)
    const row = first && this.byUid(first.networkUid)
    return row && hasBridge(row) ? row : undefined
  }

  /** The ports of this host that lead into vms, or into one. */
  ports(vmUid?: string): Port[] {
    return ledPorts(this.#store)
      .filter((one) => vmUid === undefined || one.vmUid === vmUid)
      .map(({ vm, protocol, address, port, guestPort, guest }) => ({
        vm,
        protocol,
        host_address: address,
        host_port: port,
        guest_port: guestPort,
        ip_address: guest,
      }))
  }

  /**
   * Gives a container a card in a network: a pair of links, one end in the bridge, the other in the container's
   * namespace and set up there, or left on the host for the caller to move.
   *
   * @throws `network_not_found`, `network_ambiguous`, `network_invalid`, `attachment_exists`, `network_exhausted`,
   * `network_address_taken`, `network_unable`
   */
  attach(ref: string, want: NetworkAttach): Lease {
    const row = this.find(ref)
    if (!hasBridge(row)) throw networkInvalid({ name: row.name, reason: 'a container needs a bridge, and it has none' })
    const netns = want.netns === undefined ? undefined : openNetns(row, want.netns)
    try {
      const lease = immediate(this.#store, (tx) => leaseContainer(tx, row, want))
      try {
        const { inside } = vethNames(row.uid, want.container)
        this.#able(() => {
          this.links.openVeth(row, lease, { name: inside, netns }, () => {
            this.service.attach(row, lease)
          })
          if (netns !== undefined) setUpInside(row, lease, inside, netns)
        })
        return { ...viewLease(lease), link: lease.link, container_link: inside }
      } catch (error) {
        this.#detach(row, lease)
        throw error
      }
    } finally {
      if (netns !== undefined) closeSync(netns)
    }
  }

  /** Takes a container out of a network. @throws `network_not_found`, `network_ambiguous`, `attachment_not_found` */
  detach(ref: string, container: string): void {
    const row = this.find(ref)
    if (!hasBridge(row)) throw attachmentNotFound({ name: container, network: row.name })
    this.#detach(row, findContainer(this.#store, row, container))
  }

  #detach(row: Bridged, lease: LeaseRow): void {
    this.#able(() => {
      this.links.removeLink(row, lease.link)
      this.service.detach(row, lease)
    })
    immediate(this.#store, (tx) => {
      releaseContainer(tx, lease)
    })
  }

  /** Takes back what does not go with the last descriptor of a card. */
  closeTap(lease: LeaseRow): void {
    const row = this.byUid(lease.networkUid)
    if (!row) return
    if (hasBridge(row)) this.service.detach(row, lease)
    else this.links.removeLink(row, lease.link)
  }

  /** What a card has sent and received, as its guest sees it; undefined where its link is not there. */
  traffic(lease: LeaseRow): Traffic | undefined {
    const row = this.byUid(lease.networkUid)
    const seen = row && this.#able(() => this.links.counters(row, lease.link))
    if (!row || !seen) return undefined
    const { rxBytes, txBytes, rxPackets, txPackets } = seen
    const name = { network: row.name, mac_address: lease.mac }
    // A macvtap is the guest's own end; of a tap the host has the other.
    return hasBridge(row)
      ? { ...name, rx_bytes: txBytes, tx_bytes: rxBytes, rx_packets: txPackets, tx_packets: rxPackets }
      : { ...name, rx_bytes: rxBytes, tx_bytes: txBytes, rx_packets: rxPackets, tx_packets: txPackets }
  }

  /** Keeps a network from being found while it is made or taken away. */
  async #hide(row: NetworkRow, work: () => Promise<void>): Promise<void> {
    const done = work().finally(() => {
      this.#hidden.delete(row.uid)
    })
    this.#hidden.set(
      row.uid,
      done.catch(() => undefined),
    )
    await done
  }

  async #forget(row: NetworkRow, told = false): Promise<void> {
    if (hasBridge(row)) await this.service.drop(row)
    this.#step('network-dropped')
    this.#able(() => {
      this.links.removeNetwork(row)
    })
    this.#step('network-unlinked')
    immediate(this.#store, (tx) => {
      tx.delete(leases)
        .where(and(eq(leases.networkUid, row.uid), isNull(leases.vmUid)))
        .run()
      tx.delete(networks).where(eq(networks.uid, row.uid)).run()
      if (told)
        tx.events.append(tx, networkEvents, {
          type: 'NETWORK_DELETED',
          name: row.name,
          uid: row.uid,
          data: { subnet: row.subnet ?? '' },
        })
    })
  }

  #checkParent(name: string, parent: string): void {
    const link = this.#able(() => this.links.hostLink(parent))
    if (!link) throw networkConflict({ name, reason: `this host has no NIC "${parent}"`, hint: '"ip link" lists them' })
    if (link.master !== undefined)
      throw networkConflict({
        name,
        reason: `"${parent}" is a port of a bridge, which takes all its frames`,
        hint: 'Use a bridged network, or take it out of its bridge',
      })
    if (isWireless(parent))
      throw networkConflict({
        name,
        reason: `"${parent}" is wireless, and takes frames of one address only`,
        hint: 'Use a bridged network',
      })
  }

  /** Does what needs the right to change links. @throws `network_unable` */
  #able<T>(work: () => T): T {
    try {
      return work()
    } catch (error) {
      throw unableOf(error)
    }
  }

  #view(row: NetworkRow): Network {
    const used = this.#store
      .select({ n: sql<number>`count(*)` })
      .from(leases)
      .where(and(eq(leases.networkUid, row.uid), isNull(leases.releasedAt)))
      .get()
    const { spec } = row
    return {
      uid: row.uid,
      name: row.name,
      type: row.type,
      default: row.isDefault,
      bridge: row.bridge,
      subnet: row.subnet,
      gateway: row.gateway,
      pool: spec.pool,
      reservations: spec.reservations,
      subnet6: row.subnet6,
      gateway6: gateway6Of(row),
      mtu: row.mtu,
      peer: spec.peer,
      egress: spec.egress,
      dhcp: spec.dhcp,
      parent: spec.parent,
      parent_mode: spec.parent_mode,
      addresses_used: used?.n ?? 0,
      addresses_total: poolSize(row),
      created_at: new Date(row.createdAt).toISOString(),
    }
  }
}

/** Shows a lease as the API does. */
export const viewLease = (row: LeaseRow): Lease => ({
  name: row.name,
  kind: row.kind,
  uid: row.vmUid,
  ip_address: row.address === null ? null : sayV4(row.address),
  ip6_address: row.address6,
  mac_address: row.releasedAt === null ? row.mac : '',
  link: row.releasedAt === null ? row.link : '',
  released_at: row.releasedAt === null ? null : new Date(row.releasedAt).toISOString(),
})

const bridgeName = (taken: ReadonlySet<string | null>): string => {
  for (let number = 0; ; number++) if (!taken.has(`aerie${number}`)) return `aerie${number}`
}

const isWireless = (link: string): boolean => existsSync(`/sys/class/net/${link}/wireless`)

/** Says what this host lacks, where it is that which made a change fail; else the error itself. */
const unableOf = (error: unknown): unknown => {
  if (hasCode(error, 'EPERM', 'EACCES', 'EROFS'))
    return networkUnable(
      { reason: 'this daemon may not change its links', hint: 'Run it as root, or with CAP_NET_ADMIN' },
      error,
    )
  if (hasCode(error, 'EPROTONOSUPPORT', 'EAFNOSUPPORT', 'EOPNOTSUPP', 'ENOENT'))
    return networkUnable(
      {
        reason: `its kernel lacks what networks are made of (${messageOf(error)})`,
        hint: 'Bridges, taps and nf_tables are needed: load the modules bridge, tun and nf_tables',
      },
      error,
    )
  return error
}
