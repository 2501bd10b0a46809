import { closeSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { hasCode } from '../linux/errno.ts'
import { closeFd } from '../linux/fd.ts'
import {
  addresses,
  deleteAddress,
  deleteLink,
  type Link,
  linkByName,
  type LinkCounters,
  linkCounters,
  links,
  newAddress,
  newBridge,
  newMacvtap,
  newVeth,
  openLinks,
  routes,
  setLink,
  setPort,
} from '../linux/netlink/links.ts'
import type { Message } from '../linux/netlink/message.ts'
import type { Netlink } from '../linux/netlink/netlink.ts'
import { deleteTokenBucket, newTokenBucket } from '../linux/netlink/qdisc.ts'
import { isNamespace, makeNetns, unmount } from '../linux/netns.ts'
import { attachMacvtap, openTap } from '../linux/tap.ts'
import type { LeaseRow, NetworkRow } from '../store/schema.ts'
import { burstOf } from './bandwidth.ts'
import { uplinks as uplinkNames } from './firewall/forwarding.ts'
import type { Bridged } from './network-row.ts'
import { bytesV4, inPrefix6, type Range4, readPrefix6, readRange4, readV4 } from './address.ts'

/** The network namespace in which the links of a network stand. */
interface Place {
  readonly netlink: Netlink
  /** Absent: the host's own. */
  readonly netns: number | undefined
}

const HOST = ''

/**
 * The links of this host that are ours: bridges, the host's ends of cards, namespaces of isolated networks. What is
 * made here is made again after a crash or a reboot from the rows alone, and making twice is fine.
 */
export class HostLinks implements Disposable {
  readonly #run: string
  readonly #places = new Map<string, Place>()

  /** `run` is the folder that the namespaces are mounted in. */
  constructor(run: string) {
    this.#run = join(run, 'netns')
  }

  [Symbol.dispose](): void {
    for (const { netlink, netns } of this.#places.values()) {
      netlink[Symbol.dispose]()
      if (netns !== undefined) closeSync(netns)
    }
    this.#places.clear()
  }

  /** The place of a network's links, made where it is not there. @throws EPERM */
  #place(network: Pick<NetworkRow, 'uid' | 'type'>): Place {
    const key = network.type === 'isolated' ? network.uid : HOST
    const known = this.#places.get(key)
    if (known) return known
    const netns = key === HOST ? undefined : this.#openNetns(network.uid)
    const place = { netlink: openLinks(netns), netns }
    this.#places.set(key, place)
    return place
  }

  #openNetns(uid: string): number {
    const path = join(this.#run, uid)
    mkdirSync(this.#run, { recursive: true, mode: 0o700 })
    if (!isNetns(path)) {
      writeFileSync(path, '', { mode: 0o600 })
      makeNetns(path)
    }
    return openSync(path, 'r')
  }

  /** The namespace of a network's links; undefined: the host's own. */
  netnsOf(network: Pick<NetworkRow, 'uid' | 'type'>): number | undefined {
    return this.#place(network).netns
  }

  /** Makes the bridge of a network what its row says, with its addresses; gives its index. */
  ensureBridge(network: Bridged): number {
    const { netlink } = this.#place(network)
    let bridge = linkByName(netlink, network.bridge)
    if (!bridge) {
      const { bridge: name, mac, mtu } = network
      netlink.apply('make a bridge', [newBridge({ name, mac, mtu })])
      bridge = linkByName(netlink, name)
      if (!bridge) throw new Error(`the bridge ${name} has gone`)
    }
    const changes = bridgeChanges(netlink, network, bridge)
    if (changes.length > 0) netlink.apply('set up a bridge', changes)
    return bridge.index
  }

  /**
   * Puts back what others took from a network's links: its bridge, the addresses and the MTU of that, its ports. Tells
   * what it was.
   */
  repair(network: Bridged, ports: readonly string[]): { readonly anew: boolean; readonly said: string[] } {
    const { netlink } = this.#place(network)
    const before = linkByName(netlink, network.bridge)
    const isWhole = before !== undefined && bridgeChanges(netlink, network, before).length === 0
    const master = isWhole ? before.index : this.ensureBridge(network)
    const said = isWhole ? [] : [before ? `the settings of ${network.bridge}` : `the bridge ${network.bridge}`]
    const lost = links(netlink).filter(
      (link) => ports.includes(link.name) && (link.master !== master || !link.up || link.mtu !== network.mtu),
    )
    if (lost.length > 0)
      netlink.apply(
        'put ports back',
        lost.flatMap(({ index }) => portChanges(network, index, master)),
      )
    return { anew: before === undefined, said: [...said, ...lost.map(({ name }) => `the port ${name}`)] }
  }

  /**
   * Makes the tap of a card, which hands its guest at most `download` bytes a second, and puts it into its bridge; it
   * goes with the last of its descriptors. `before` is called when the link is there and still down.
   */
  openTap(
    network: Bridged,
    lease: Pick<LeaseRow, 'link'>,
    queues: number,
    download: number | undefined,
    before: (link: Link) => void,
  ): number[] {
    const { netlink, netns } = this.#place(network)
    // Its addresses are looked at by the repair of every minute.
    const master = linkByName(netlink, network.bridge)?.index ?? this.ensureBridge(network)
    const fds = openTap(lease.link, queues, netns)
    try {
      const tap = linkByName(netlink, lease.link)
      if (!tap) throw new Error(`the tap ${lease.link} has gone`)
      before(tap)
      netlink.apply('attach a tap', [
        ...(download === undefined ? [] : [newTokenBucket(tap.index, download, burstOf(download))]),
        ...portChanges(network, tap.index, master),
      ])
      return fds
    } catch (error) {
      for (const fd of fds) closeFd(fd)
      throw error
    }
  }

  /** Lets a port hand its guest so many bytes a second, or as many as come. Tells whether the port is there. */
  setDownload(network: Pick<NetworkRow, 'uid' | 'type'>, name: string, download: number | undefined): boolean {
    const { netlink } = this.#place(network)
    const link = linkByName(netlink, name)
    if (!link) return false
    try {
      netlink.apply('limit a port', [
        download === undefined
          ? deleteTokenBucket(link.index)
          : newTokenBucket(link.index, download, burstOf(download)),
      ])
    } catch (error) {
      // It had no limit.
      if (download !== undefined || !hasCode(error, 'ENOENT', 'EINVAL')) throw error
    }
    return true
  }

  /**
   * Makes the pair of a container: the host's end goes into the bridge, the other is born in the network namespace of a
   * descriptor, or stays in the host's. `before` is called when the pair is there and still down.
   *
   * @throws EEXIST: there is a link of one of the names
   */
  openVeth(
    network: Bridged,
    { link, mac }: Pick<LeaseRow, 'link' | 'mac'>,
    inside: { readonly name: string; readonly netns: number | undefined },
    before: (link: Link) => void,
  ): void {
    const master = this.ensureBridge(network)
    const { netlink, netns } = this.#place(network)
    const own = inside.netns === undefined && netns !== undefined ? openSync('/proc/self/ns/net', 'r') : undefined
    const { mtu } = network
    try {
      const peer = { name: inside.name, mac, mtu, netns: inside.netns ?? own }
      netlink.apply('make a pair of links', [newVeth({ name: link, mtu }, peer)])
      const port = linkByName(netlink, link)
      if (!port) throw new Error(`the link ${link} has gone`)
      before(port)
      netlink.apply('attach a container', portChanges(network, port.index, master))
    } catch (error) {
      this.removeLink(network, link)
      throw error
    } finally {
      if (own !== undefined) closeSync(own)
    }
  }

  /** Makes a macvtap on the network's parent, and opens it. It stays when its descriptors are closed: `removeLink`. */
  openMacvtap(network: NetworkRow, lease: Pick<LeaseRow, 'link' | 'mac'>, queues: number): number[] {
    const { netlink } = this.#place(network)
    const parent = linkByName(netlink, network.spec.parent ?? '')
    if (!parent) throw new Error(`there is no link ${network.spec.parent}`)
    if (linkByName(netlink, lease.link)) this.removeLink(network, lease.link)
    const { link: name, mac } = lease
    netlink.apply('make a macvtap', [newMacvtap({ name, mac }, parent.index, network.spec.parent_mode ?? 'bridge')])
    const link = linkByName(netlink, name)
    if (!link) throw new Error(`the macvtap ${name} has gone`)
    const fds: number[] = []
    try {
      for (let queue = 0; queue < queues; queue++) {
        const fd = openSync(`/dev/tap${link.index}`, 'r+')
        fds.push(fd)
        attachMacvtap(fd, name, queues)
      }
      return fds
    } catch (error) {
      for (const fd of fds) closeFd(fd)
      this.removeLink(network, name)
      throw error
    }
  }

  /** Takes a link away, where it is there. It waits in the kernel: for links that are few. */
  removeLink(network: Pick<NetworkRow, 'uid' | 'type'>, name: string): void {
    const { netlink } = this.#place(network)
    const link = linkByName(netlink, name)
    if (link) netlink.apply('remove a link', [deleteLink(link.index)])
  }

  /** Takes away the bridge of a network, and its namespace. */
  removeNetwork(network: NetworkRow): void {
    const isApart = network.type === 'isolated'
    const isThere = !isApart || this.#places.has(network.uid) || isNetns(join(this.#run, network.uid))
    if (network.bridge !== null && isThere) this.removeLink(network, network.bridge)
    if (!isApart) return
    const place = this.#places.get(network.uid)
    this.#places.delete(network.uid)
    place?.netlink[Symbol.dispose]()
    if (place?.netns !== undefined) closeSync(place.netns)
    const path = join(this.#run, network.uid)
    if (isNetns(path)) unmount(path)
    rmSync(path, { force: true })
  }

  /** The socket for the host's own links. */
  hostNetlink(): Netlink {
    return this.#place({ uid: HOST, type: 'bridged' }).netlink
  }

  /** A link of the host's by its name. */
  hostLink(name: string): Link | undefined {
    return linkByName(this.hostNetlink(), name)
  }

  /** What has gone over a link of a network's; undefined where it is not there. */
  counters(network: Pick<NetworkRow, 'uid' | 'type'>, name: string): LinkCounters | undefined {
    return linkCounters(this.#place(network).netlink, name)
  }

  /** Every link of a network's place. */
  linksOf(network: Pick<NetworkRow, 'uid' | 'type'>): Link[] {
    return links(this.#place(network).netlink)
  }

  /** The IPv4 ranges that this host routes, but for the default route. */
  routed(): Range4[] {
    return routes(this.hostNetlink()).flatMap(({ family, destination, prefix, table }) =>
      family === 4 && prefix > 0 && table !== LOCAL_TABLE
        ? (readRange4(`${[...destination].join('.')}/${prefix}`) ?? [])
        : [],
    )
  }

  /** The smallest MTU of the links over which this host reaches the world; 1500 where it does not. */
  uplinkMtu(): number {
    const uplinks = this.uplinks()
    return uplinks.length === 0 ? 1500 : Math.max(1280, Math.min(...uplinks.map(({ mtu }) => mtu)))
  }

  /** What the fastest uplink does, bytes a second; 10 Gb/s where none of them says it, as those of clouds. */
  uplinkCapacity(): number {
    const speeds = this.uplinks().map(({ name }) => megabitsOf(name))
    return (Math.max(0, ...speeds) || 10_000) * 125_000
  }

  /** The links of the default routes. */
  uplinks(): Link[] {
    const netlink = this.hostNetlink()
    const { v4, v6 } = uplinkNames(netlink)
    return links(netlink).filter(({ name }) => v4.includes(name) || v6.includes(name))
  }
}

/** Reads the speed of a link, Mb/s; 0 where it says none. */
const megabitsOf = (link: string): number => {
  try {
    return Math.max(0, Number(readFileSync(`/sys/class/net/${link}/speed`, 'utf8')) || 0)
  } catch {
    return 0 // EINVAL: a link that is down or no card; ENOENT: one of another namespace
  }
}

/** The table of the host's own addresses (linux/rtnetlink.h). */
const LOCAL_TABLE = 255

/** What makes a link a port of a network's bridge. */
const portChanges = (network: NetworkRow, index: number, master: number): Message[] => [
  setLink(index, { master, mtu: network.mtu, bare: true }),
  ...(network.spec.peer === 'closed' ? [setPort(index, { isolated: true })] : []),
  setLink(index, { up: true }),
]

/** What must be changed for a bridge to be what its row says. */
const bridgeChanges = (netlink: Netlink, network: NetworkRow, bridge: Link): Message[] => {
  const own = addresses(netlink).filter(({ link }) => link === bridge.index)
  const has = (bytes: Uint8Array, prefix: number): boolean =>
    own.some((one) => one.prefix === prefix && Buffer.compare(one.address, bytes) === 0)
  const wanted: (readonly [Uint8Array, number])[] = []
  const range = network.subnet === null ? undefined : readRange4(network.subnet)
  const gateway = network.gateway === null ? undefined : readV4(network.gateway)
  if (range && gateway !== undefined) wanted.push([bytesV4(gateway), range.length])
  const prefix = network.subnet6 === null ? undefined : readPrefix6(network.subnet6)
  if (prefix) wanted.push([inPrefix6(prefix, 1), 64])
  const isWanted = (address: Uint8Array): boolean => wanted.some(([bytes]) => Buffer.compare(bytes, address) === 0)
  return [
    ...(bridge.up && bridge.mtu === network.mtu && bridge.mac === network.mac
      ? []
      : [setLink(bridge.index, { up: true, mtu: network.mtu, mac: network.mac })]),
    ...own
      .filter(({ address }) => address.length === 4 && !isWanted(address))
      .map(({ address, prefix }) => deleteAddress(bridge.index, address, prefix)),
    ...wanted
      .filter(([bytes, length]) => !has(bytes, length))
      .map(([bytes, length]) => newAddress(bridge.index, bytes, length)),
  ]
}

/** Whether a network namespace is mounted at a path. */
const isNetns = (path: string): boolean => {
  try {
    return isNamespace(path)
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false
    throw error
  }
}
