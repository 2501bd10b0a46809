import { DATATYPE, type Element, interfaceBytes, keyOf, type SetShape } from '../../linux/netlink/nft.ts'
import { port } from '../../linux/netlink/nft-expression.ts'
import type { Allow, Egress, FirewallNetwork, FirewallNic, Published } from './description.ts'
import { addressBytes, BITS, bytesOf, readRange } from './range.ts'

/*
 * What changes while the rules stay: which bridges there are, who may go where, what is published. Every network, port
 * of a bridge and published port has elements of its own in these sets, so that it comes and goes with them alone.
 */

const { ipv4, ipv6, protocol, port: portType, interface: link } = DATATYPE
const address = { 4: ipv4, 6: ipv6 } as const

const versioned = <const Name extends string>(
  name: Name,
  shape: (type: typeof ipv4 | typeof ipv6) => Omit<SetShape, 'name'>,
): Readonly<Record<4 | 6, SetShape>> => ({
  4: { name: `${name}4`, ...shape(address[4]) },
  6: { name: `${name}6`, ...shape(address[6]) },
})

export const SETS = {
  /** Bridges whose guests this table answers for. */
  bridges: { name: 'bridges', key: [link] },
  /** A bridge, twice: what comes from it may go back into it. */
  open: { name: 'open', key: [link, link] },
  /** Bridges whose network lets everything out. */
  unrestricted: { name: 'unrestricted', key: [link] },
  /** A bridge and the host's address on it. */
  gateways: versioned('gateways', (type) => ({ key: [link, type] })),
  /** Ports of bridges: what comes in by one itself comes from a port that is no longer in its bridge. */
  ports: { name: 'ports', key: [link] },
  /** Guests by what they may reach. */
  all: versioned('all', (type) => ({ key: [type] })),
  none: versioned('none', (type) => ({ key: [type] })),
  limited: versioned('limited', (type) => ({ key: [type] })),
  /** Those of them that have a list, to its chain (`lists.ts`). */
  lists: versioned('lists', (type) => ({ key: [type], data: 'verdict' })),
  /** Guest, destination, protocol and port of what a name turned out to be, for its time. */
  learned: versioned('learned', (type) => ({ key: [type, type, protocol, portType], timeout: true })),
  /** The same for names with all their ports. */
  learnedWhole: versioned('learned-whole', (type) => ({ key: [type, type, protocol], timeout: true })),
  /** Protocol, address and port of this host to those of a guest. */
  published: versioned('published', (type) => ({ key: [protocol, type, portType], data: [type, portType] })),
  /** The same on every address of this host. */
  publishedAnywhere: versioned('published-anywhere', (type) => ({
    key: [protocol, portType],
    data: [type, portType],
  })),
  /** The addresses at which clouds tell a host its secrets, and what is on the host's own links alone. */
  metadata: versioned('metadata', (type) => ({ key: [type], interval: true })),
} as const

export const ALL_SETS: readonly SetShape[] = Object.values(SETS).flatMap((one) =>
  'name' in one ? [one] : [one[4], one[6]],
)

/** Elements of sets: those of one thing, or of many. */
export type Elements = readonly (readonly [set: SetShape, elements: readonly Element[]])[]

const PROTOCOL = { tcp: 6, udp: 17 } as const
const ICMP = { 4: 1, 6: 58 } as const
const METADATA = [
  '169.254.0.0/16', // link-local: 169.254.169.254 of most clouds, 169.254.170.2 of containers
  '100.100.100.200', // Alibaba
  '192.0.0.192', // Oracle
  'fe80::/10',
  'fd00:ec2::254', // Amazon
  'fd20:ce::254', // Google
] as const

const element = (shape: SetShape, ...fields: readonly Uint8Array[]): Element => ({ key: keyOf(shape.key, fields) })

const versionOf = (bytes: Uint8Array): 4 | 6 => (bytes.length === 4 ? 4 : 6)

/** Lists the addresses at which clouds tell a host its secrets. */
export const metadataElements = (): Elements =>
  METADATA.map((text) => {
    const { version, first, last } = readRange(text)
    return [SETS.metadata[version], [{ key: addressBytes(version, first), last: addressBytes(version, last) }]] as const
  })

/** Tells whether the guests of a network stand behind a bridge of ours. */
export const isBehindBridge = ({ kind }: FirewallNetwork): boolean => kind !== 'macvtap'

/** Lists the elements that a network puts into the sets. */
export const networkElements = (network: FirewallNetwork): Elements => {
  if (!isBehindBridge(network)) return []
  const bridge = interfaceBytes(network.bridge)
  const isolated = network.kind === 'isolated'
  return [
    [SETS.bridges, [element(SETS.bridges, bridge)]],
    ...(network.peer === 'open' ? [[SETS.open, [element(SETS.open, bridge, bridge)]] as const] : []),
    ...(network.egress.policy === 'all' && !isolated
      ? [[SETS.unrestricted, [element(SETS.unrestricted, bridge)]] as const]
      : []),
    ...[network.gateway, network.gateway6].flatMap((gateway) => {
      if (gateway === null) return []
      const bytes = bytesOf(gateway)
      const set = SETS.gateways[versionOf(bytes)]
      return [[set, [element(set, bridge, bytes)]] as const]
    }),
  ]
}

/** What holds for a port of a bridge: its own, or its network's. */
export const egressOf = (nic: FirewallNic, network: FirewallNetwork | undefined): Egress => {
  if (!network || network.kind === 'isolated') return { policy: 'none', allow: [] }
  return nic.egress ?? network.egress
}

/** Reads `443` or `8000-8010`. @throws RangeError */
export const readPorts = (text: string): readonly [first: number, last: number] => {
  const [first = 0, last = first] = /^\d{1,5}(-\d{1,5})?$/.test(text) ? text.split('-').map(Number) : []
  if (first < 1 || last > 65535 || first > last)
    throw new RangeError(`no port and no range of ports: ${JSON.stringify(text)}`)
  return [first, last]
}

/** The numbers of protocols and ports that a line of an allow-list is about. @throws RangeError */
export const protocolsOf = ({ proto, ports }: Allow, version: 4 | 6): readonly (readonly [number, number])[] => {
  if (proto === 'icmp') return [[ICMP[version], ICMP[version]]]
  if (proto !== undefined) return [[PROTOCOL[proto], PROTOCOL[proto]]]
  if (ports !== undefined && ports.length > 0)
    return [
      [PROTOCOL.tcp, PROTOCOL.tcp],
      [PROTOCOL.udp, PROTOCOL.udp],
    ]
  return [[0, 255]]
}

/** What a port of a bridge needs but for the list of its guest. */
export const nicElements = (nic: FirewallNic, { policy }: Egress, list?: string): Elements => [
  [SETS.ports, [element(SETS.ports, interfaceBytes(nic.link))]],
  ...nic.addresses.map(bytesOf).flatMap((source): Elements => {
    const version = versionOf(source)
    const set = { all: SETS.all, none: SETS.none, 'allow-list': SETS.limited }[policy][version]
    const key = element(set, source)
    return [
      [set, [key]],
      ...(list === undefined ? [] : [[SETS.lists[version], [{ ...key, data: { verdict: { goto: list } } }]] as const]),
    ]
  }),
]

/** @throws RangeError: addresses of two kinds, a range that does not fit */
export const publishedElements = (published: Published): Elements => {
  const { version, first: host } = readRange(published.address)
  const target = bytesOf(published.target)
  const count = (published.portEnd ?? published.port) - published.port + 1
  const lastPort = Math.max(published.port, published.targetPort) + count - 1
  if (versionOf(target) !== version)
    throw new RangeError(`${published.address} cannot be published to ${published.target}: IPv4 and IPv6`)
  if (count < 1 || published.port < 1 || published.targetPort < 1 || lastPort > 65535)
    throw new RangeError(`no range of ports: ${published.port}-${published.portEnd ?? published.port}`)
  if ((host === 0x7f000001n && version === 4) || (host === 1n && version === 6) || host >> 24n === 0x7fn)
    throw new RangeError(`${published.address} is not published by rules: it is a loopback address`)
  const anywhere = host === 0n
  const set = (anywhere ? SETS.publishedAnywhere : SETS.published)[version]
  const proto = Uint8Array.of(PROTOCOL[published.proto])
  const one = (offset: number): Element => ({
    key: keyOf(set.key, [proto, ...(anywhere ? [] : [addressBytes(version, host)]), port(published.port + offset)]),
    data: keyOf([address[version], portType], [target, port(published.targetPort + offset)]),
  })
  return [[set, Array.from({ length: count }, (_, offset) => one(offset))]]
}

/** The two ends of a subnet, for a comparison under a mask. */
export const subnetOf = (
  text: string,
): { readonly version: 4 | 6; readonly mask: Uint8Array; readonly bits: Uint8Array } => {
  const { version, first, last } = readRange(text)
  const all = (1n << BigInt(BITS[version])) - 1n
  return { version, mask: addressBytes(version, all ^ (first ^ last)), bits: addressBytes(version, first) }
}
