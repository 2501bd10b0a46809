import { hasCode } from '../../linux/errno.ts'
import { type Message, textOf, u32 } from '../../linux/netlink/message.ts'
import type { Netlink } from '../../linux/netlink/netlink.ts'
import {
  addElements,
  type Count,
  DATATYPE,
  deleteChain,
  deleteElements,
  deleteRules,
  type Element,
  elements,
  elementsNamed,
  FAMILY,
  type FoundElement,
  interfaceBytes,
  keyOf,
  newChain,
  newRule,
  newSet,
  type SetShape,
  type Table,
} from '../../linux/netlink/nft.ts'
import {
  beyondBytesPerSecond,
  compare,
  counter,
  type Expression,
  extensionHeader,
  immediate,
  lookup,
  lookupNot,
  masked,
  meta,
  payload,
  port,
  setMark,
  verdict,
  within,
} from '../../linux/netlink/nft-expression.ts'
import type { FirewallNic } from './description.ts'
import { bytesOf, linkLocalOf, macBytes } from './range.ts'

/*
 * What a port of a bridge may send, decided where its frames enter the host (netdev ingress): from its own MAC address
 * and its own addresses, and never the words of a router. All else is dropped and counted by its kind.
 *
 * The rules stand there once, for all ports; a port has a chain that leads to them and elements of sets. A port without
 * elements sends nothing.
 */

/**
 * Why a frame was dropped. `ra` is what only a router or a DHCP server says: router advertisements, redirects, queries
 * of multicast listeners, answers of DHCP; `other` is every frame that is no IPv4, ARP or IPv6, one with a VLAN tag
 * among them.
 */
export const DROP_KINDS = ['mac', 'arp', 'ipv4', 'ipv6', 'ra', 'other'] as const
export type DropKind = (typeof DROP_KINDS)[number]
export type Drops = Readonly<Record<DropKind, Count>>

/** The table that guards the links of guests (family netdev). */
export const guardTable = (name: string): Table => ({ family: FAMILY.netdev, name })

const { interface: link, mac: macType, ipv4, ipv6, mark } = DATATYPE
const OWN = {
  mac: { name: 'own-mac', key: [link, macType] },
  4: { name: 'own-ipv4', key: [link, macType, ipv4] },
  6: { name: 'own-ipv6', key: [link, macType, ipv6] },
} as const satisfies Record<string, SetShape>
/** Ports whose guest may ask for its address. */
const ASKING: SetShape = { name: 'asking', key: [link] }
/** A port and the number of a kind of drop, from 1 on: each element counts. */
const DROPPED: SetShape = { name: 'dropped', key: [link, mark], counter: true }
const GUARD_SETS = [OWN.mac, OWN[4], OWN[6], ASKING, DROPPED]

/** Registers: a link's name takes four, a MAC address two. */
const AT_MAC = 4
const AT_ADDRESS = 6

const ETHER = { ipv4: port(0x0800), arp: port(0x0806), ipv6: port(0x86dd) } as const
const UDP = Uint8Array.of(17)
const ICMP6 = Uint8Array.of(58)
/** Ethernet, IPv4, lengths of 6 and 4. */
const ARP_KIND = Uint8Array.of(0, 1, 8, 0, 6, 4)
const ANY4 = new Uint8Array(4)
const ANY6 = new Uint8Array(16)
const BROADCAST4 = Uint8Array.of(255, 255, 255, 255)
const TYPE = {
  errorFirst: 1,
  errorLast: 4,
  echo: 128,
  listenerQuery: 130,
  listenerReport: 131,
  listenerDone: 132,
  routerAdvertisement: 134,
  solicitation: 135,
  advertisement: 136,
  redirect: 137,
  listenerReport2: 143,
} as const
const FRAGMENT = 44

const etherType = (type: Uint8Array): Expression[] => [payload('link', 12, 2), compare('==', type)]
const protocol = (is: Uint8Array): Expression[] => [meta('l4proto'), compare('==', is)]
const ports = (source: number, destination: number): Expression[] => [
  ...protocol(UDP),
  payload('transport', 0, 4),
  compare('==', Buffer.concat([port(source), port(destination)])),
]
const icmp6 = (type: number): Expression[] => [
  ...protocol(ICMP6),
  payload('transport', 0, 1),
  compare('==', Uint8Array.of(type)),
]
const icmp6Within = (first: number, last: number): Expression[] => [
  ...protocol(ICMP6),
  payload('transport', 0, 1),
  within(Uint8Array.of(first), Uint8Array.of(last)),
]
const linkThen = (...loads: readonly Expression[]): Expression[] => [meta('iifname'), ...loads]
const source = payload('link', 6, 6, AT_MAC)
const source4 = payload('network', 12, 4, AT_ADDRESS)
const source6 = payload('network', 8, 16, AT_ADDRESS)
/** The address that a solicitation or an advertisement of a neighbour is about. */
const target6 = payload('transport', 8, 16, AT_ADDRESS)
const isSource6 = (address: Uint8Array): Expression[] => [payload('network', 8, 16), compare('==', address)]

/** The largest packet that a guest with offloads sends, and its header. */
const BURST = 66_000

const CHAIN = 'guard'
const chainOf = (kind: DropKind): string => `drop-${kind}`
const accept = verdict('accept')
const drop = (kind: DropKind): Expression => verdict({ goto: chainOf(kind) })
const isOwn = (version: 4 | 6, ...loads: readonly Expression[]): Expression[] => [
  ...linkThen(...loads),
  lookup(OWN[version].name),
]
const isNotOwn = (version: 4 | 6, ...loads: readonly Expression[]): Expression[] => [
  ...linkThen(...loads),
  lookupNot(OWN[version].name),
]
const isArp = [...etherType(ETHER.arp), payload('network', 0, 6), compare('==', ARP_KIND)]
const arpSender = payload('network', 8, 6, AT_MAC)

const RULES: readonly (readonly Expression[])[] = [
  [...linkThen(source), lookupNot(OWN.mac.name), drop('mac')],

  [...isArp, ...isOwn(4, arpSender, payload('network', 14, 4, AT_ADDRESS)), accept],
  // Asks whether anybody has the address before taking it.
  [
    ...isArp,
    payload('network', 14, 4),
    compare('==', ANY4),
    ...isOwn(4, arpSender, payload('network', 24, 4, AT_ADDRESS)),
    accept,
  ],
  [...etherType(ETHER.arp), drop('arp')],

  [...etherType(ETHER.ipv4), ...ports(67, 68), drop('ra')],
  [...etherType(ETHER.ipv4), ...isOwn(4, source, source4), accept],
  [
    ...etherType(ETHER.ipv4),
    payload('network', 12, 8),
    compare('==', Buffer.concat([ANY4, BROADCAST4])),
    ...ports(68, 67),
    meta('iifname'),
    lookup(ASKING.name),
    accept,
  ],
  [...etherType(ETHER.ipv4), drop('ipv4')],

  // By the type in the frame and not by `meta protocol`, which has forgotten a VLAN tag here.
  [payload('link', 12, 2), compare('!=', ETHER.ipv6), drop('other')],
  ...[TYPE.listenerQuery, TYPE.routerAdvertisement, TYPE.redirect].map((type) => [...icmp6(type), drop('ra')]),
  [...ports(547, 546), drop('ra')],
  [...icmp6(TYPE.solicitation), ...isSource6(ANY6), ...isNotOwn(6, source, target6), drop('ipv6')],
  [...icmp6(TYPE.advertisement), ...isNotOwn(6, source, target6), drop('ipv6')],
  ...[TYPE.solicitation, TYPE.listenerReport, TYPE.listenerDone, TYPE.listenerReport2].map((type) => [
    ...isSource6(ANY6),
    ...icmp6(type),
    accept,
  ]),
  [...isNotOwn(6, source, source6), drop('ipv6')],
  [...icmp6Within(TYPE.errorFirst, TYPE.errorLast), accept],
  [...icmp6Within(TYPE.echo, TYPE.advertisement), accept],
  [...icmp6(TYPE.listenerReport2), accept],
  // Of a message in parts only the first has a type, and has been looked at.
  [
    ...protocol(ICMP6),
    extensionHeader(FRAGMENT, 2, 2),
    masked(Uint8Array.of(0xff, 0xf8)),
    compare('!=', Uint8Array.of(0, 0)),
    accept,
  ],
  // Where headers do not lead to a protocol there is nothing to compare, and the rule does not hold.
  [meta('l4proto'), compare('!=', ICMP6), accept],
  [drop('ipv6')],
]

/** The sets and the rules that all ports share. */
export const guards = (table: Table): Message[] => [
  ...GUARD_SETS.map((set) => newSet(table, set)),
  ...['count', ...DROP_KINDS.map(chainOf), CHAIN].map((chain) => newChain(table, chain)),
  // The mark is only a number to count by: the frame ends here.
  newRule(table, 'count', [...linkThen(meta('mark', AT_MAC)), lookup(DROPPED.name)]),
  newRule(table, 'count', [verdict('drop')]),
  ...DROP_KINDS.map((kind, at) =>
    newRule(table, chainOf(kind), [immediate(u32(at + 1)), setMark(), verdict({ goto: 'count' })]),
  ),
  ...RULES.map((rule) => newRule(table, CHAIN, rule)),
]

type Elements = readonly (readonly [set: SetShape, elements: readonly Element[]])[]

const droppedKey = (port: string, at: number): Uint8Array => keyOf(DROPPED.key, [interfaceBytes(port), u32(at + 1)])

const ownElements = (nic: FirewallNic): Elements => {
  const name = interfaceBytes(nic.link)
  const mac = macBytes(nic.mac)
  const addresses = [...nic.addresses.map(bytesOf), linkLocalOf(mac)]
  const unique = [...new Map(addresses.map((address) => [Buffer.from(address).toString('hex'), address])).values()]
  const own = (version: 4 | 6): Element[] =>
    unique
      .filter(({ length }) => length === (version === 4 ? 4 : 16))
      .map((address) => ({ key: keyOf(OWN[version].key, [name, mac, address]) }))
  return [
    [OWN.mac, [{ key: keyOf(OWN.mac.key, [name, mac]) }]],
    [OWN[4], own(4)],
    [OWN[6], own(6)],
    [ASKING, nic.dhcp ? [{ key: name }] : []],
  ]
}

const droppedElements = (port: string, from?: Partial<Drops>): Elements => [
  [DROPPED, DROP_KINDS.map((kind, at) => ({ key: droppedKey(port, at), comment: kind, count: from?.[kind] }))],
]

const all = (elements: readonly Elements[]): Elements =>
  GUARD_SETS.map((set) => [set, elements.flat().flatMap(([of, list]) => (of === set ? list : []))])

/**
 * Guards ports. Before Linux 6.16 or so their links must be there. @throws RangeError: no address, no MAC, a name too
 * long
 */
export const guard = (
  table: Table,
  nics: readonly FirewallNic[],
  from?: ReadonlyMap<string, Partial<Drops>>,
  there?: ReadonlySet<string>,
): Message[] => [
  ...all(nics.flatMap((nic) => [ownElements(nic), droppedElements(nic.link, from?.get(nic.link))])).flatMap(
    ([set, list]) => addElements(table, set, list),
  ),
  ...nics.flatMap((nic) => (there && !there.has(nic.link) ? [] : guardChain(table, nic))),
]

/** Leads what comes in by a port to the rules for ports. */
const guardChain = (table: Table, nic: FirewallNic): Message[] => [
  newChain(table, nic.link, { kind: 'filter', hook: 'ingress', priority: 0, policy: 'drop', device: nic.link }),
  ...guardRules(table, nic),
]

/**
 * Drops what is beyond the rate first: TCP slows down for that, and what it sent too little while it did is in the
 * bucket, which holds a second, so that its rate over time is the one that was asked for.
 */
const guardRules = (table: Table, { link: port, upload }: FirewallNic): Message[] => [
  ...(upload === undefined
    ? []
    : [newRule(table, port, [beyondBytesPerSecond(upload, BURST), counter(), verdict('drop')], 'upload')]),
  newRule(table, port, [verdict({ goto: CHAIN })]),
]

/** Changes how fast a guarded port may send. */
export const limitAgain = (table: Table, nic: FirewallNic): Message[] => [
  deleteRules(table, nic.link),
  ...guardRules(table, nic),
]

/** Changes what a guarded port may send; its counters go on. */
export const reguard = (table: Table, was: FirewallNic, becomes: FirewallNic): Message[] => [
  ...ownElements(was).flatMap(([set, list]) => deleteElements(table, set, list)),
  ...ownElements(becomes).flatMap(([set, list]) => addElements(table, set, list)),
]

const unchain = (table: Table, port: string): Message[] => [deleteRules(table, port), deleteChain(table, port)]

/** Leads to the guard again, for a link that was made anew; `isThere` where the chain of the one before is left. */
export const guardAgain = (table: Table, nic: FirewallNic, isThere: boolean): Message[] => [
  ...(isThere ? unchain(table, nic.link) : []),
  ...guardChain(table, nic),
]

/** Takes a guard away; the chain is not there where an older kernel took it away with its link. */
export const unguard = (table: Table, nic: FirewallNic, isThere: boolean): Message[] => [
  ...(isThere ? unchain(table, nic.link) : []),
  ...[...ownElements(nic), ...droppedElements(nic.link)].flatMap(([set, list]) => deleteElements(table, set, list)),
]

const NONE: Count = { packets: 0, bytes: 0 }

const dropsIn = (found: readonly FoundElement[]): ReadonlyMap<string, Drops> => {
  const byPort = new Map<string, Record<DropKind, Count>>()
  for (const { key, count } of found) {
    const port = textOf(key)
    const kind = DROP_KINDS[key.readUInt32LE(key.length - 4) - 1]
    const drops = byPort.get(port) ?? { mac: NONE, arp: NONE, ipv4: NONE, ipv6: NONE, ra: NONE, other: NONE }
    if (kind && count) drops[kind] = count
    byPort.set(port, drops)
  }
  return byPort
}

/** Says what a port was kept from sending; undefined where it is not guarded. */
export const dropsOf = (netlink: Netlink, table: Table, port: string): Drops | undefined => {
  const wanted = DROP_KINDS.map((_, at) => ({ key: droppedKey(port, at) }))
  return dropsIn(elementsNamed(netlink, table, DROPPED, wanted)).get(port)
}

/** The same of all ports at once; of none where there is no table. */
export const allDrops = (netlink: Netlink, table: Table): ReadonlyMap<string, Drops> => {
  try {
    return dropsIn(elements(netlink, table, DROPPED.name))
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return new Map()
    throw error
  }
}
