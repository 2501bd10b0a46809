import { type Attribute, attributesOf, FLAG, type Message, text, textOf, u32, u8 } from './message.ts'
import { Netlink, PROTOCOL } from './netlink.ts'

/*
 * Links, addresses and routes: rtnetlink(7), linux/if_link.h, linux/if_addr.h. The functions that make messages send
 * nothing: any number of them goes in one `apply`.
 */

const RTM = {
  newLink: 16,
  delLink: 17,
  getLink: 18,
  newAddress: 20,
  delAddress: 21,
  getAddress: 22,
  newRoute: 24,
  delRoute: 25,
  getRoute: 26,
  delNeighbour: 29,
  getNeighbour: 30,
} as const
const IFLA = {
  address: 1,
  name: 3,
  mtu: 4,
  link: 5,
  master: 10,
  linkInfo: 18,
  stats64: 23,
  netNsPid: 19,
  group: 27,
  netNsFd: 28,
  afSpec: 26,
  protInfo: 12,
} as const
const INFO = { kind: 1, data: 2, slaveKind: 4, slaveData: 5 } as const
const PORT = {
  guard: 5,
  protect: 6,
  fastLeave: 7,
  learning: 8,
  unicastFlood: 9,
  isolated: 33,
  neighSuppress: 32,
} as const
const BRIDGE = { forwardDelay: 1, stpState: 5, mcastSnooping: 23 } as const
const VETH_PEER = 1
const MACVLAN_MODE = 1
export const MACVTAP_MODE = { private: 1, bridge: 4, passthru: 8 } as const
export type MacvtapMode = keyof typeof MACVTAP_MODE
/** How an interface comes to addresses of its own (linux/if_link.h, below IFLA_AF_SPEC). */
const ADDR_GEN_MODE = 8
const ADDR_GEN_NONE = 1
const IFF_UP = 1
const ANY = 0
const AF_INET = 2
const AF_INET6 = 10
const IFA = { address: 1, local: 2, flags: 8 } as const
const IFA_F_NODAD = 2
const RTA = { destination: 1, outInterface: 4, gateway: 5, table: 15 } as const

/** A link as the kernel has it. */
export interface Link {
  readonly index: number
  readonly name: string
  readonly kind: string
  readonly mac: string
  readonly mtu: number
  readonly up: boolean
  readonly carrier: boolean
  /** Index of the bridge that it is a port of. */
  readonly master: number | undefined
  /** Index of the link below it, where it stands on one. */
  readonly below: number | undefined
  readonly group: number
}

const linkHead = (index: number, up?: boolean): Uint8Array => {
  const head = Buffer.alloc(16)
  head[0] = ANY
  head.writeInt32LE(index, 4)
  if (up !== undefined) {
    head.writeUInt32LE(up ? IFF_UP : 0, 8)
    head.writeUInt32LE(IFF_UP, 12)
  }
  return head
}

const macBytes = (mac: string): Uint8Array => Buffer.from(mac.replaceAll(':', ''), 'hex')

/** Writes a hardware address as people do: `02:00:00:00:00:01`. */
export const sayMac = (bytes: Uint8Array): string =>
  [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(':')

/** What a new link is given in the message that makes it, before anybody else can look at it. */
export interface NewLink {
  readonly name: string
  readonly mac?: string | undefined
  readonly mtu?: number | undefined
  readonly group?: number | undefined
}

const common = ({ name, mac, mtu, group }: NewLink): Attribute[] => [
  [IFLA.name, text(name)],
  ...(mac === undefined ? [] : [[IFLA.address, macBytes(mac)] as const]),
  ...(mtu === undefined ? [] : [[IFLA.mtu, u32(mtu)] as const]),
  ...(group === undefined ? [] : [[IFLA.group, u32(group)] as const]),
]

const make = (
  link: NewLink,
  kind: string,
  data: readonly Attribute[],
  more: readonly Attribute[] = [],
  up?: boolean,
): Message => ({
  type: RTM.newLink,
  flags: FLAG.create | FLAG.excl,
  head: linkHead(0, up),
  attributes: [
    ...common(link),
    ...more,
    [IFLA.linkInfo, [[INFO.kind, text(kind)], ...(data.length > 0 ? [[INFO.data, data] as const] : [])]],
  ],
})

/** A bridge without spanning tree, which would keep a new port silent for 30 s; its MAC does not follow its ports. */
export const newBridge = (link: NewLink & { readonly mac: string }): Message =>
  make(
    link,
    'bridge',
    [
      [BRIDGE.forwardDelay, u32(0)],
      [BRIDGE.stpState, u32(0)],
    ],
    [],
    true,
  )

/** A pair of ends: the second is born in the network namespace of the descriptor `peerNetns`, where one is given. */
export const newVeth = (link: NewLink, peer: NewLink & { readonly netns?: number | undefined }): Message =>
  make(link, 'veth', [
    [
      VETH_PEER,
      // A `struct ifinfomsg` stands before the attributes of the peer.
      Buffer.concat([
        linkHead(0),
        attributeBytes([
          ...common(peer),
          ...(peer.netns === undefined ? [] : [[IFLA.netNsFd, u32(peer.netns)] as const]),
        ]),
      ]),
    ],
  ])

const attributeBytes = (attributes: readonly Attribute[]): Uint8Array => {
  const parts = attributes.flatMap(([type, value]) => {
    if (!(value instanceof Uint8Array)) throw new TypeError('nested attributes')
    const size = 4 + value.length
    const bytes = Buffer.alloc((size + 3) & ~3)
    bytes.writeUInt16LE(size)
    bytes.writeUInt16LE(type, 2)
    bytes.set(value, 4)
    return [bytes]
  })
  return Buffer.concat(parts)
}

/** A macvtap on the link `parent`; its character device is `/dev/tap<index>`. It does not go with its descriptors. */
export const newMacvtap = (link: NewLink, parent: number, mode: MacvtapMode): Message =>
  make(link, 'macvtap', [[MACVLAN_MODE, u32(MACVTAP_MODE[mode])]], [[IFLA.link, u32(parent)]], true)

/** Changes a link: into a bridge (0: out of it), up or down, its MTU, its address, its group. */
export const setLink = (
  index: number,
  change: {
    readonly master?: number
    readonly up?: boolean
    readonly mtu?: number
    readonly mac?: string
    readonly group?: number
    readonly name?: string
    readonly netns?: number
    /** Give the host itself no IPv6 address on it. */
    readonly bare?: true
  },
): Message => ({
  type: RTM.newLink,
  head: linkHead(index, change.up),
  attributes: [
    ...(change.bare ? [[IFLA.afSpec, [[AF_INET6, [[ADDR_GEN_MODE, u8(ADDR_GEN_NONE)]]]]] as const] : []),
    ...(change.master === undefined ? [] : [[IFLA.master, u32(change.master)] as const]),
    ...(change.mtu === undefined ? [] : [[IFLA.mtu, u32(change.mtu)] as const]),
    ...(change.mac === undefined ? [] : [[IFLA.address, macBytes(change.mac)] as const]),
    ...(change.group === undefined ? [] : [[IFLA.group, u32(change.group)] as const]),
    ...(change.name === undefined ? [] : [[IFLA.name, text(change.name)] as const]),
    ...(change.netns === undefined ? [] : [[IFLA.netNsFd, u32(change.netns)] as const]),
  ],
})

/**
 * How a bridge treats one of its ports: ports that are isolated do not hear one another. Not with `setLink`: the kernel
 * would ignore it.
 */
export const setPort = (index: number, { isolated }: { readonly isolated: boolean }): Message => {
  const head = Buffer.from(linkHead(index))
  return {
    type: RTM.newLink,
    head,
    attributes: [
      [
        IFLA.linkInfo,
        [
          [INFO.slaveKind, text('bridge')],
          [INFO.slaveData, [[PORT.isolated, u8(isolated ? 1 : 0)]]],
        ],
      ],
    ],
  }
}

/** Takes a link away; of a pair of ends both. */
export const deleteLink = (index: number): Message => ({ type: RTM.delLink, head: linkHead(index) })

/** Takes away all links of a group with one wait of the kernel's. */
export const deleteGroup = (group: number): Message => ({
  type: RTM.delLink,
  head: linkHead(0),
  attributes: [[IFLA.group, u32(group)]],
})

/** An address in bytes: 4 of IPv4, 16 of IPv6. */
export type AddressBytes = Uint8Array

const family = (address: AddressBytes): number => (address.length === 4 ? AF_INET : AF_INET6)

const addressMessage = (type: number, flags: number, link: number, address: AddressBytes, prefix: number): Message => ({
  type,
  flags,
  head: Buffer.concat([Uint8Array.of(family(address), prefix, 0, 0), u32(link)]),
  attributes: [
    [IFA.local, address],
    [IFA.address, address],
    ...(type === RTM.newAddress && address.length === 16 ? [[IFA.flags, u32(IFA_F_NODAD)] as const] : []),
  ],
})

/** Gives a link an address; one that it has already stays. */
export const newAddress = (link: number, address: AddressBytes, prefix: number): Message =>
  addressMessage(RTM.newAddress, FLAG.create | FLAG.replace, link, address, prefix)

/** Makes the message that takes an address from a link: rtnetlink(7), RTM_DELADDR. */
export const deleteAddress = (link: number, address: AddressBytes, prefix: number): Message =>
  addressMessage(RTM.delAddress, 0, link, address, prefix)

/** A route of the main table: to everywhere where the prefix is 0. */
export const newRoute = (
  destination: AddressBytes,
  prefix: number,
  over: { readonly gateway?: AddressBytes; readonly link?: number },
): Message => ({
  type: RTM.newRoute,
  flags: FLAG.create | FLAG.replace,
  // family, destination length, source length, tos, table main, protocol static, scope universe or link, unicast, flags
  head: Uint8Array.of(family(destination), prefix, 0, 0, 254, 4, over.gateway ? 0 : 253, 1, 0, 0, 0, 0),
  attributes: [
    ...(prefix > 0 ? [[RTA.destination, destination] as const] : []),
    ...(over.gateway ? [[RTA.gateway, over.gateway] as const] : []),
    ...(over.link === undefined ? [] : [[RTA.outInterface, u32(over.link)] as const]),
  ],
})

/** Forgets who has an address on a link. */
export const deleteNeighbour = (link: number, address: AddressBytes): Message => {
  const head = Buffer.alloc(12)
  head[0] = family(address)
  head.writeInt32LE(link, 4)
  return { type: RTM.delNeighbour, head, attributes: [[1, address]] }
}

const linkOf = (body: Buffer): Link => {
  const attributes = attributesOf(body.subarray(16))
  const info = attributes.get(IFLA.linkInfo)
  const kind = info && attributesOf(info).get(INFO.kind)
  const number = (type: number): number | undefined => {
    const bytes = attributes.get(type)
    return bytes && bytes.length >= 4 ? bytes.readUInt32LE(0) : undefined
  }
  const flags = body.readUInt32LE(8)
  return {
    index: body.readInt32LE(4),
    name: textOf(attributes.get(IFLA.name) ?? Buffer.alloc(0)),
    kind: kind ? textOf(kind) : '',
    mac: sayMac(attributes.get(IFLA.address) ?? Buffer.alloc(0)),
    mtu: number(IFLA.mtu) ?? 0,
    up: (flags & IFF_UP) !== 0,
    carrier: (flags & 0x1_0000) !== 0,
    master: number(IFLA.master),
    below: number(IFLA.link),
    group: number(IFLA.group) ?? 0,
  }
}

/** An address that a link has. */
export interface LinkAddress {
  readonly link: number
  readonly address: Uint8Array
  readonly prefix: number
}

/** A route of the host's. */
export interface Route {
  readonly family: 4 | 6
  readonly destination: Uint8Array
  readonly prefix: number
  readonly gateway: Uint8Array | undefined
  readonly link: number | undefined
  readonly table: number
}

/** Lists, and one link by its name. */
export const links = (netlink: Netlink): Link[] =>
  netlink
    .dump('list the links', { type: RTM.getLink, head: linkHead(0) })
    .filter(({ type }) => type === RTM.newLink)
    .map(({ body }) => linkOf(body))

/** Finds a link by its name; undefined where there is none. */
export const linkByName = (netlink: Netlink, name: string): Link | undefined => {
  const found = netlink.get('look for a link', {
    type: RTM.getLink,
    head: linkHead(0),
    attributes: [[IFLA.name, text(name)]],
  })
  return found && linkOf(found.body)
}

/** What has gone over a link, as its host sees it. */
export interface LinkCounters {
  readonly rxPackets: number
  readonly txPackets: number
  readonly rxBytes: number
  readonly txBytes: number
}

/** Reads what has gone over a link (`struct rtnl_link_stats64`); undefined where there is no such link. */
export const linkCounters = (netlink: Netlink, name: string): LinkCounters | undefined => {
  const found = netlink.get('read the counters of a link', {
    type: RTM.getLink,
    head: linkHead(0),
    attributes: [[IFLA.name, text(name)]],
  })
  const bytes = found && attributesOf(found.body.subarray(16)).get(IFLA.stats64)
  if (!bytes || bytes.length < 32) return undefined
  const [rxPackets = 0, txPackets = 0, rxBytes = 0, txBytes = 0] = [0, 8, 16, 24].map((at) =>
    Number(bytes.readBigUInt64LE(at)),
  )
  return { rxPackets, txPackets, rxBytes, txBytes }
}

/** Lists the addresses of all links. */
export const addresses = (netlink: Netlink): LinkAddress[] =>
  netlink.dump('list the addresses', { type: RTM.getAddress, head: Buffer.alloc(8) }).flatMap(({ type, body }) => {
    const attributes = attributesOf(body.subarray(8))
    const address = attributes.get(IFA.local) ?? attributes.get(IFA.address)
    return type === RTM.newAddress && address ? [{ link: body.readUInt32LE(4), address, prefix: body[1] ?? 0 }] : []
  })

/** Lists the routes of IPv4 and IPv6. */
export const routes = (netlink: Netlink): Route[] =>
  netlink.dump('list the routes', { type: RTM.getRoute, head: Buffer.alloc(12) }).flatMap(({ type, body }) => {
    const version = body[0] === AF_INET ? 4 : body[0] === AF_INET6 ? 6 : undefined
    if (type !== RTM.newRoute || version === undefined) return []
    const attributes = attributesOf(body.subarray(12))
    return [
      {
        family: version,
        destination: attributes.get(RTA.destination) ?? Buffer.alloc(version === 4 ? 4 : 16),
        prefix: body[1] ?? 0,
        gateway: attributes.get(RTA.gateway),
        link: attributes.get(RTA.outInterface)?.readUInt32LE(0),
        table: attributes.get(RTA.table)?.readUInt32LE(0) ?? body[4] ?? 0,
      } as const,
    ]
  })

/** Opens a socket for links, addresses and routes. */
export const openLinks = (netns?: number): Netlink => Netlink.open(PROTOCOL.route, netns)
