import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, statSync } from 'node:fs'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { eq } from 'drizzle-orm'
import type { Config } from '../../config.ts'
import type { Egress } from '../../contract/network.ts'
import { chain } from '../../lib/fault.ts'
import type { Log } from '../../lib/log.ts'
import { Serial } from '../../lib/serial.ts'
import { closeFd } from '../../linux/fd.ts'
import { replaceFile } from '../../linux/file.ts'
import { endMarked } from '../../linux/marked.ts'
import { type LeaseRow, type NetworkRow, networks, type PortRow, vms } from '../../store/schema.ts'
import type { Store } from '../../store/store.ts'
import { type Bandwidth, bandwidthOf } from '../bandwidth.ts'
import { sayV4 } from '../address.ts'
import type { Egress as FirewallEgress, FirewallNetwork, FirewallNic, Published } from '../firewall/description.ts'
import { type ChangedSetting, forward, undoForwarding, uplinks } from '../firewall/forwarding.ts'
import { Firewall } from '../firewall/live-firewall.ts'
import { bindPort, type HeldPort, isLoopback, type LedPort, ledPorts } from '../ports.ts'
import { membersOf } from '../leases.ts'
import type { HostLinks } from '../host-links.ts'
import { type Bridged, gateway6Of, hasBridge } from '../network-row.ts'
import { openHelperSockets } from './helper-sockets.ts'
import { type HelperLease, type HelperState, NetHelper } from './net-helper.ts'

const RESOLV_CONF = '/etc/resolv.conf'
/** The domain below which every network has its own. */
const DOMAIN = 'aerie'
const LEASE_S = 3600
/** How long the speed of the uplink is taken for what it was. */
const CAPACITY_MS = 10_000

/** What a network service is made of. */
export interface ServiceHost {
  readonly store: Store
  readonly links: HostLinks
  readonly config: Pick<Config, 'cpu_oversubscription' | 'cpus' | 'run' | 'state'>
  readonly stateId: string
  readonly log: Log
}

/**
 * What keeps networks alive beside their links: the firewall in front of every port, the helper that answers DHCP and DNS, and forwarding.
 * All of it is made again from the rows at the daemon's start.
 */
export class NetworkService {
  readonly #host: ServiceHost
  readonly #folder: string
  /** The firewall of each place, by `placeOf`. */
  readonly #firewalls = new Map<string, Firewall>()
  /** The helper of each network, by its uid. */
  readonly #helpers = new Map<string, NetHelper>()
  /** Sockets of ports that are held here. */
  readonly #held = new Map<string, number>()
  /** What is done to the helper of a network goes in order. */
  readonly #queue = new Serial()
  /** The networks that are taken away, by their uid. */
  readonly #dropped = new Set<string>()
  #generation = Date.now()
  #capacityIs: { readonly at: number; readonly bytesPerS: number } | undefined
  #upstreamsAt = ''

  constructor(host: ServiceHost) {
    this.#host = host
    this.#folder = join(host.config.run, 'net')
  }

  /** Makes a network whole: bridge, firewall, forwarding, helper. @throws what the kernel says */
  async bring(row: Bridged): Promise<void> {
    this.#dropped.delete(row.uid)
    this.#host.links.ensureBridge(row)
    this.#firewall(row).setNetwork(firewallNetwork(row))
    this.#forward()
    await this.#queue.run(row.uid, () => this.#bringHelper(row))
  }

  /** Makes a network whole whose bridge was made anew: its helper listens on the one that has gone. */
  async renew(row: Bridged): Promise<void> {
    await this.#queue.run(row.uid, () => this.#endHelper(row))
    await this.bring(row)
  }

  /** Takes a network away, but for its links. */
  async drop(row: Bridged): Promise<void> {
    this.#dropped.add(row.uid)
    this.#firewalls.get(placeOf(row))?.removeNetwork(row.name)
    if (row.type === 'isolated') {
      this.#firewalls.get(row.uid)?.[Symbol.dispose]()
      this.#firewalls.delete(row.uid)
    }
    await this.#queue.run(row.uid, async () => {
      await this.#endHelper(row)
      rmSync(this.#pathOf(row.uid), { force: true })
    })
    this.#forward(row.uid)
  }

  /** Guards the port of a card, before it is up, and lets its owner be found. */
  attach(row: Bridged, lease: LeaseRow): void {
    this.#firewall(row).attach(firewallNic(row, lease, this.bandwidth(lease).upload))
    this.#tellLease(row, lease, true)
  }

  /** Says how fast a card may be; that of no vm is as fast as it can. */
  bandwidth({ vmUid }: Pick<LeaseRow, 'vmUid'>): Bandwidth {
    const vm = vmUid === null ? undefined : this.#host.store.select().from(vms).where(eq(vms.uid, vmUid)).get()
    if (!vm) return { download: undefined, upload: undefined }
    const { cpus, cpu_oversubscription: oversubscription } = this.#host.config
    const share = { vcpus: vm.cpuCores, cpus, oversubscription, capacity: this.#capacity() }
    const { network_bandwidth_download: download, network_bandwidth_upload: upload } = vm.spec.compute
    return { download: bandwidthOf(download, share), upload: bandwidthOf(upload, share) }
  }

  /** Tells what the uplink does; it is asked anew after a while only, since asking lists links and routes. */
  #capacity(): number {
    const now = performance.now()
    if (this.#capacityIs === undefined || now - this.#capacityIs.at > CAPACITY_MS)
      this.#capacityIs = { at: now, bytesPerS: this.#host.links.uplinkCapacity() }
    return this.#capacityIs.bytesPerS
  }

  /** Forgets the port of a card that has gone. */
  detach(row: Bridged, lease: LeaseRow): void {
    this.#firewalls.get(placeOf(row))?.detach(lease.link)
    this.#tellLease(row, lease, false)
  }

  /**
   * Leads held ports of the host into a guest: those of the loopback by the helper, which takes their sockets over, others by the firewall,
   * while this daemon holds their sockets.
   */
  async publish(row: Bridged, vmUid: string, held: readonly HeldPort[]): Promise<void> {
    const led = ledPorts(this.#host.store).filter((one) => one.vmUid === vmUid)
    for (const { protocol, address, port, fd } of held) {
      const one = led.find((other) => keyOf(other) === keyOf({ protocol, address, port }))
      if (!one) closeFd(fd)
      else if (isLoopback(address)) await this.#queue.run(row.uid, () => this.#listen(row, one, fd))
      else {
        this.#held.set(keyOf(one), fd)
        this.#lead(row, one)
      }
    }
  }

  /** Leads a port on by the firewall, which may know it already by the rows that it was opened with. */
  #lead(row: Bridged, one: LedPort): void {
    const published = publishedOf(one)
    this.#firewall(row).unpublish(published)
    this.#firewall(row).publish(published)
  }

  /** Takes back ports that led into a guest. */
  async unpublish(row: Bridged, gone: readonly PortRow[]): Promise<void> {
    for (const one of gone) {
      if (isLoopback(one.address)) {
        await this.#queue.run(row.uid, async () => {
          await this.helperOf(row)?.unlisten(keyOf(one))
        })
        continue
      }
      const { protocol: proto, address, port } = one
      this.#firewalls.get(placeOf(row))?.unpublish([{ proto, address, port }])
      const fd = this.#held.get(keyOf(one))
      this.#held.delete(keyOf(one))
      if (fd !== undefined) closeFd(fd)
    }
  }

  async #listen(row: Bridged, one: LedPort, fd: number): Promise<void> {
    try {
      await this.helperOf(row)?.listen(keyOf(one), one.protocol, `${one.guest}:${one.guestPort}`, fd)
    } finally {
      closeFd(fd)
    }
  }

  /** Holds again what this daemon should, after it or the helper was away. What somebody else has by now is told in the log. */
  async #holdAgain(row: Bridged): Promise<void> {
    const led = ledPorts(this.#host.store).filter(({ networkUid }) => networkUid === row.uid)
    const helper = this.helperOf(row)
    const listening = new Set(await helper?.listeners())
    for (const id of listening) if (!led.some((one) => keyOf(one) === id)) await helper?.unlisten(id)
    for (const one of led) {
      if (listening.has(keyOf(one)) || this.#held.has(keyOf(one))) continue
      try {
        const fd = bindPort(one.protocol, one.address, one.port)
        if (fd === undefined) continue
        if (isLoopback(one.address)) await this.#listen(row, one, fd)
        else this.#held.set(keyOf(one), fd)
      } catch (error) {
        this.#firewall(row).unpublish(publishedOf(one))
        this.#host.log.error(
          { vm: one.vm, port: one.port, reasons: chain(error) },
          'cannot have a published port again',
        )
      }
    }
  }

  /** Says why frames of a port were dropped, and how many. */
  dropped(row: Bridged, link: string): Record<string, number> {
    const counters = this.#firewalls.get(placeOf(row))?.counters(link)
    return Object.fromEntries(Object.entries(counters ?? {}).map(([kind, { packets }]) => [kind, Number(packets)]))
  }

  /** The firewall that a network's ports stand behind. */
  firewallOf(row: Bridged): Firewall {
    return this.#firewall(row)
  }

  /** The helper of a network; undefined while there is none. */
  helperOf(row: Pick<NetworkRow, 'uid'>): NetHelper | undefined {
    const helper = this.#helpers.get(row.uid)
    return helper?.isOpen === true ? helper : undefined
  }

  /** The mark of a helper's process. */
  markOf(uid: string): string {
    return `${this.#host.stateId}/${uid}`
  }

  /** Looks at what no event tells: helpers that ended, resolvers of the host that changed. */
  async look(): Promise<void> {
    const changed = this.#upstreamsAt !== upstreamsAt()
    for (const row of this.#host.store.select().from(networks).all()) {
      if (!hasBridge(row)) continue
      const helper = this.helperOf(row)
      try {
        if (!helper) await this.#queue.run(row.uid, () => this.#healHelper(row))
        else if (changed) await helper.tell({ type: 'upstreams', upstreams: upstreamsFor(row) })
      } catch (error) {
        this.#host.log.error({ network: row.name, reasons: chain(error) }, 'cannot look after a network')
      }
    }
    this.#upstreamsAt = upstreamsAt()
  }

  close(): void {
    for (const helper of this.#helpers.values()) helper.close()
    for (const firewall of this.#firewalls.values()) firewall[Symbol.dispose]()
    for (const fd of this.#held.values()) closeFd(fd)
    this.#helpers.clear()
    this.#firewalls.clear()
    this.#held.clear()
  }

  #firewall(row: NetworkRow): Firewall {
    const place = placeOf(row)
    const known = this.#firewalls.get(place)
    if (known) return known
    const there = this.#host.store.select().from(networks).all().filter(hasBridge)
    const ours = there.filter((one) => placeOf(one) === place)
    const links = new Set(this.#host.links.linksOf(row).map(({ name }) => name))
    const nics = ours.flatMap((network) =>
      membersOf(this.#host.store, network.uid)
        .filter(({ link }) => links.has(link))
        .map((lease) => firewallNic(network, lease, this.bandwidth(lease).upload)),
    )
    const here = new Set(ours.map(({ uid }) => uid))
    const published = ledPorts(this.#host.store)
      .filter(({ address, networkUid }) => !isLoopback(address) && here.has(networkUid))
      .flatMap(publishedOf)
    const firewall = Firewall.open(
      { table: `aerie-${this.#host.stateId.slice(0, 8)}`, netns: this.#host.links.netnsOf(row) },
      { networks: ours.map(firewallNetwork), nics, published },
    )
    this.#firewalls.set(place, firewall)
    return firewall
  }

  /** Lets bridges and uplinks forward; what was changed for it is written down, and put back with the last network. */
  #forward(gone?: string): void {
    const path = join(this.#host.config.state, 'forwarding.json')
    const before = existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as ChangedSetting[]) : []
    const rows = this.#host.store.select().from(networks).all().filter(hasBridge)
    const bridges = rows.filter(({ type, uid }) => type !== 'isolated' && uid !== gone)
    if (bridges.length === 0) {
      undoForwarding(before.filter(({ path: setting }) => !/\/aerie\d+\//.test(setting)))
      rmSync(path, { force: true })
      return
    }
    const changed = forward({
      bridges: bridges.map(({ bridge }) => bridge),
      bridges6: bridges.filter(({ subnet6 }) => subnet6 !== null).map(({ bridge }) => bridge),
      uplinks: uplinks(this.#host.links.hostNetlink()),
    })
    const fresh = changed.filter(({ path: setting }) => !before.some((one) => one.path === setting))
    if (fresh.length > 0) replaceFile(path, JSON.stringify([...before, ...fresh]))
  }

  #pathOf(uid: string): string {
    return join(this.#folder, uid)
  }

  async #bringHelper(row: Bridged): Promise<void> {
    this.#leaveHelper(row)
    const path = this.#pathOf(row.uid)
    const learn = (client: string, name: string, found: readonly string[], ttl: number): boolean => {
      const lease = membersOf(this.#host.store, row.uid).find((one) => addressesOf(one).includes(client))
      return lease !== undefined && this.#firewall(row).learn(lease.link, name, found, ttl).length === found.length
    }
    const told = async (): Promise<boolean> => {
      const helper = await NetHelper.connect(path, this.#host.log, learn)
      if (!helper) return false
      this.#helpers.set(row.uid, helper)
      await helper.state(++this.#generation, this.#stateOf(row))
      return true
    }
    const known = await told().catch((error: unknown) => {
      this.#host.log.warn({ network: row.name, reasons: chain(error) }, 'a network gets another helper')
      return false
    })
    if (!known) {
      await this.#endHelper(row) // it would keep the ports that the next one needs
      await this.#launchHelper(row, path)
      if (!(await told())) throw new Error('the network helper does not answer')
    }
    await this.#holdAgain(row)
  }

  /** Hangs up on the helper of a network, which serves on. */
  #leaveHelper({ uid }: Bridged): void {
    this.#helpers.get(uid)?.close()
    this.#helpers.delete(uid)
  }

  async #endHelper(row: Bridged): Promise<void> {
    this.#leaveHelper(row)
    await endMarked(this.markOf(row.uid))
  }

  /** Brings a helper back that ended, where its network is still there. */
  async #healHelper(row: Bridged): Promise<void> {
    const isThere = this.#host.store.select().from(networks).where(eq(networks.uid, row.uid)).get() !== undefined
    if (isThere && !this.#dropped.has(row.uid) && !this.helperOf(row)) await this.#bringHelper(row)
  }

  async #launchHelper(row: Bridged, path: string): Promise<void> {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
    const { sockets, taken } = openHelperSockets(row, this.#host.links.netnsOf(row))
    if (taken.length > 0)
      this.#host.log.warn({ network: row.name, taken }, 'another program of this host has what its guests ask')
    const log = openSync(`${path}.log`, 'a', 0o600)
    try {
      await NetHelper.launch(path, this.markOf(row.uid), sockets, log)
    } finally {
      closeSync(log)
      for (const { fd } of sockets) closeFd(fd)
    }
  }

  #stateOf(row: Bridged): HelperState {
    const links = new Set(this.#host.links.linksOf(row).map(({ name }) => name))
    const members = membersOf(this.#host.store, row.uid)
    const hasWayOut = row.type !== 'isolated'
    const domain = `${row.name}.${DOMAIN}`
    return {
      network: {
        name: row.name,
        domain,
        subnet: row.subnet,
        gateway: hasWayOut ? row.gateway : null,
        subnet6: row.subnet6,
        gateway6: hasWayOut ? gateway6Of(row) : null,
        mtu: row.mtu,
        dhcp: row.spec.dhcp,
        lease_s: LEASE_S,
        search: [domain],
      },
      leases: members.map((lease) => helperLease(row, lease, links.has(lease.link))),
      names: members
        .filter(({ link }) => links.has(link))
        .map((lease) => ({ name: lease.name, addresses: addressesOf(lease) })),
      upstreams: upstreamsFor(row),
    }
  }

  #tellLease(row: Bridged, lease: LeaseRow, running: boolean): void {
    const { name } = lease
    const told = this.#queue.run(row.uid, async () => {
      const helper = this.helperOf(row)
      await helper?.tell({ type: 'lease_put', lease: helperLease(row, lease, running) })
      if (lease.nic > 0) return
      await helper?.tell(
        running ? { type: 'name_put', name, addresses: addressesOf(lease) } : { type: 'name_remove', name },
      )
    })
    told.catch((error: unknown) => {
      this.#host.log.warn({ network: row.name, reasons: chain(error) }, 'cannot tell the network helper')
    })
  }
}

/** Names a port of the host. */
const keyOf = ({ protocol, address, port }: Pick<PortRow, 'protocol' | 'address' | 'port'>): string =>
  `${protocol} ${address} ${port}`

/** A port as the firewall leads it on; none where the guest has no address of its family. */
const publishedOf = ({ protocol, address, port, guest, guest6, guestPort }: LedPort): Published[] => {
  const target = isIP(address) === 6 ? guest6 : guest
  return target === null ? [] : [{ proto: protocol, address, port, target, targetPort: guestPort }]
}

/** Names the place of a network's links: its own, or the host's. */
const placeOf = ({ type, uid }: Pick<NetworkRow, 'type' | 'uid'>): string => (type === 'isolated' ? uid : '')

const firewallEgress = ({ policy, allow = [] }: Egress): FirewallEgress => ({
  policy,
  allow: allow.map(({ cidr, name, protocol, ports }) => ({
    cidr,
    name,
    proto: protocol,
    ports: ports === undefined ? undefined : [ports],
  })),
})

const firewallNetwork = (row: Bridged): FirewallNetwork => ({
  name: row.name,
  bridge: row.bridge,
  kind: row.type,
  subnet: row.subnet,
  gateway: row.gateway,
  subnet6: row.subnet6,
  gateway6: gateway6Of(row),
  peer: row.spec.peer,
  nat: row.type !== 'isolated',
  egress: firewallEgress(row.spec.egress),
})

const addressesOf = ({ address, address6 }: Pick<LeaseRow, 'address' | 'address6'>): string[] => [
  ...(address === null ? [] : [sayV4(address)]),
  ...(address6 === null ? [] : [address6]),
]

const firewallNic = (row: Bridged, lease: LeaseRow, upload: number | undefined): FirewallNic => ({
  upload,
  link: lease.link,
  network: row.name,
  mac: lease.mac,
  addresses: addressesOf(lease),
  dhcp: row.spec.dhcp,
  egress: lease.egress && firewallEgress(lease.egress),
})

const helperLease = (row: Bridged, lease: LeaseRow, running: boolean): HelperLease => {
  const { policy, allow = [] } = lease.egress ?? row.spec.egress
  return {
    mac: lease.mac,
    address: lease.address === null ? null : sayV4(lease.address),
    address6: lease.address6,
    hostname: lease.name,
    running,
    egress: policy === 'all' ? null : { names: policy === 'none' ? [] : allow.flatMap(({ name }) => name ?? []) },
  }
}

/** Tells when the resolvers of this host were last written. */
const upstreamsAt = (): string => {
  const there = statSync(RESOLV_CONF, { throwIfNoEntry: false })
  return there ? `${there.ino} ${there.mtimeMs} ${there.size}` : ''
}

/** Reads the resolvers of this host, three at most (resolv.conf(5)); a network without a way out has none. */
const upstreamsFor = ({ type }: Pick<NetworkRow, 'type'>): string[] => {
  if (type === 'isolated') return []
  let text: string
  try {
    text = readFileSync(RESOLV_CONF, 'utf8')
  } catch {
    return []
  }
  return [...text.matchAll(/^\s*nameserver\s+(\S+)/gm)]
    .flatMap(([, address = '']) =>
      isIP(address) === 4 ? [`${address}:53`] : isIP(address) === 6 ? [`[${address}]:53`] : [],
    )
    .slice(0, 3)
}
