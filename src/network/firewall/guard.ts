import type { Message } from '../../linux/netlink/message.ts'
import {
  deleteChain,
  deleteCounter,
  deleteRules,
  FAMILY,
  newChain,
  newCounter,
  newRule,
  type Count,
  type Table,
} from '../../linux/netlink/nft.ts'
import {
  compare,
  countInto,
  type Expression,
  extensionHeader,
  masked,
  meta,
  payload,
  port,
  verdict,
  within,
} from '../../linux/netlink/nft-expression.ts'
import type { FirewallNic } from './description.ts'
import { bytesOf, linkLocalOf, macBytes } from './range.ts'

/*
 * What a port of a bridge may send, decided where its frames enter the host (netdev ingress): from its own MAC address
 * and its own addresses, and never the words of a router. All else is dropped and counted by its kind.
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

/** Names the counter of what was dropped at a link for one reason. */
export const counterName = (link: string, kind: DropKind): string => `${link}-${kind}`

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
const source6 = payload('network', 8, 16)
/** The address that a solicitation or an advertisement of a neighbour is about. */
const target6 = payload('transport', 8, 16)
const none = (load: Expression, of: readonly Uint8Array[]): Expression[] => [
  load,
  ...of.map((address) => compare('!=', address)),
]

type Rule = readonly Expression[]

const rulesOf = (nic: FirewallNic): Rule[] => {
  const mac = macBytes(nic.mac)
  const addresses = nic.addresses.map(bytesOf)
  const own4 = addresses.filter(({ length }) => length === 4)
  const own6 = [...addresses.filter(({ length }) => length === 16), linkLocalOf(mac)]
  const drop = (kind: DropKind): Expression[] => [countInto(counterName(nic.link, kind)), verdict('drop')]
  const accept = verdict('accept')
  const arp = [...etherType(ETHER.arp), payload('network', 0, 6), compare('==', ARP_KIND)]
  const arpFrom = [...arp, payload('network', 8, 6), compare('==', mac), payload('network', 14, 4)]

  return [
    [payload('link', 6, 6), compare('!=', mac), ...drop('mac')],

    ...own4.flatMap((address) => [
      [...arpFrom, compare('==', address), accept],
      // Asks whether anybody has the address before taking it.
      [...arpFrom, compare('==', ANY4), payload('network', 24, 4), compare('==', address), accept],
    ]),
    [...etherType(ETHER.arp), ...drop('arp')],

    [...etherType(ETHER.ipv4), ...ports(67, 68), ...drop('ra')],
    ...own4.map((address) => [...etherType(ETHER.ipv4), payload('network', 12, 4), compare('==', address), accept]),
    ...(nic.dhcp
      ? [
          [
            ...etherType(ETHER.ipv4),
            payload('network', 12, 8),
            compare('==', Buffer.concat([ANY4, BROADCAST4])),
            ...ports(68, 67),
            accept,
          ],
        ]
      : []),
    [...etherType(ETHER.ipv4), ...drop('ipv4')],

    // By the type in the frame and not by `meta protocol`, which has forgotten a VLAN tag here.
    [payload('link', 12, 2), compare('!=', ETHER.ipv6), ...drop('other')],
    ...[TYPE.listenerQuery, TYPE.routerAdvertisement, TYPE.redirect].map((type) => [...icmp6(type), ...drop('ra')]),
    [...ports(547, 546), ...drop('ra')],
    ...[TYPE.solicitation, TYPE.advertisement].map((type) => [
      ...icmp6(type),
      ...(type === TYPE.solicitation ? [source6, compare('==', ANY6)] : []),
      ...none(target6, own6),
      ...drop('ipv6'),
    ]),
    ...[TYPE.solicitation, TYPE.listenerReport, TYPE.listenerDone, TYPE.listenerReport2].map((type) => [
      source6,
      compare('==', ANY6),
      ...icmp6(type),
      accept,
    ]),
    [...none(source6, own6), ...drop('ipv6')],
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
    drop('ipv6'),
  ]
}

/**
 * Guards a port. Before Linux 6.16 or so the link must be there. @throws RangeError: no address, no MAC, a name too
 * long
 */
export const guard = (table: Table, nic: FirewallNic, from?: Partial<Drops>): Message[] => [
  ...DROP_KINDS.map((kind) => newCounter(table, counterName(nic.link, kind), from?.[kind])),
  newChain(table, nic.link, {
    kind: 'filter',
    hook: 'ingress',
    priority: 0,
    policy: 'drop',
    device: nic.link,
  }),
  ...rulesOf(nic).map((rule) => newRule(table, nic.link, rule)),
]

/** Changes what a guarded port may send; its counters go on. */
export const reguard = (table: Table, nic: FirewallNic): Message[] => [
  deleteRules(table, nic.link),
  ...rulesOf(nic).map((rule) => newRule(table, nic.link, rule)),
]

/** Takes a guard away. */
export const unguard = (table: Table, link: string): Message[] => [
  deleteRules(table, link),
  deleteChain(table, link),
  ...DROP_KINDS.map((kind) => deleteCounter(table, counterName(link, kind))),
]
