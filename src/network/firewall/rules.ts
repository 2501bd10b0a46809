import { type Message, u32 } from '../../linux/netlink/message.ts'
import {
  addElements,
  deleteElements,
  deleteTable,
  FAMILY,
  type Hook,
  interfaceBytes,
  newChain,
  newRule,
  newSet,
  newTable,
  type Table,
} from '../../linux/netlink/nft.ts'
import {
  clampSegment,
  compare,
  counter,
  ct,
  CT_STATE,
  CT_STATUS,
  dnat,
  type Expression,
  FIB_LOCAL,
  fibDestinationType,
  lookup,
  lookupNot,
  masked,
  masquerade,
  meta,
  payload,
  port,
  rejectProhibited,
  rejectTcp,
  type Verdict,
  verdict,
} from '../../linux/netlink/nft-expression.ts'
import type { Description, FirewallNetwork, FirewallNic } from './description.ts'
import { type Drops, guard, guards, guardTable } from './guard.ts'
import type { Lists } from './lists.ts'
import {
  ALL_SETS,
  egressOf,
  type Elements,
  isBehindBridge,
  metadataElements,
  networkElements,
  nicElements,
  publishedElements,
  SETS,
  subnetOf,
} from './sets.ts'

/*
 * The rules of the table, of which all that a network, a guest or a published port changes is an element of a set
 * (`sets.ts`), but for one pair of rules a network that hides its guests behind the host's address.
 *
 * In these hooks the input of a bridged guest is its bridge. Rules about one guest go by its address, which is its own
 * since the guard of its port (`guard.ts`) lets no other through.
 */

export const rulesTable = (name: string): Table => ({ family: FAMILY.inet, name })

type Rule = readonly [expressions: readonly Expression[], comment?: string]

const VERSIONS = [4, 6] as const
const NFPROTO = { 4: Uint8Array.of(FAMILY.ipv4), 6: Uint8Array.of(FAMILY.ipv6) } as const
const TCP = Uint8Array.of(6)
const UDP = Uint8Array.of(17)
const ICMP = Uint8Array.of(1)
const ICMP6 = Uint8Array.of(58)
const ECHO = { 4: 8, 6: 128 } as const
const DNS = port(53)
const DHCP = port(67)
const DHCP6 = port(547)
const LOOPBACK4 = Uint8Array.of(127, 0, 0, 0)
const LOOPBACK4_MASK = Uint8Array.of(255, 0, 0, 0)
const LOOPBACK6 = Buffer.from('00000000000000000000000000000001', 'hex')
const SYN = 2
const SYN_OR_RST = 6

/** Registers that an address takes. */
const WIDTH = { 4: 1, 6: 4 } as const
const INTERFACE_WIDTH = 4

const ip = (version: 4 | 6): Expression[] => [meta('nfproto'), compare('==', NFPROTO[version])]
const source = (version: 4 | 6, into = 0): Expression =>
  version === 4 ? payload('network', 12, 4, into) : payload('network', 8, 16, into)
const destination = (version: 4 | 6, into = 0): Expression =>
  version === 4 ? payload('network', 16, 4, into) : payload('network', 24, 16, into)
const protocol = (is: Uint8Array): Expression[] => [meta('l4proto'), compare('==', is)]
const destinationPort = (into = 0): Expression => payload('transport', 2, 2, into)
const toPort = (transport: Uint8Array, number: Uint8Array): Expression[] => [
  ...protocol(transport),
  destinationPort(),
  compare('==', number),
]
const bits = (load: Expression, mask: number): Expression[] => [load, masked(u32(mask)), compare('!=', u32(0))]
const state = (mask: number): Expression[] => bits(ct('state'), mask)
const isPublished = bits(ct('status'), CT_STATUS.dnat)
const fromBridge = [meta('iifname'), lookup(SETS.bridges.name)]
const toBridge = [meta('oifname'), lookup(SETS.bridges.name)]
const toGateway = (version: 4 | 6): Expression[] => [
  ...ip(version),
  meta('iifname'),
  destination(version, INTERFACE_WIDTH),
  lookup(SETS.gateways[version].name),
]
const then = (what: Verdict): Expression => verdict(what)
const accept = then('accept')
const refuse = then({ goto: 'refuse' })

/** A port that somebody took out of its bridge is nobody's. */
const STRAY: Rule = [[meta('iifname'), lookup(SETS.ports.name), then('drop')], 'a port that is in no bridge']

const FORWARD: readonly Rule[] = [
  STRAY,
  [[...state(CT_STATE.established | CT_STATE.related), accept]],
  [[...fromBridge, then({ goto: 'from-guest' })]],
  [[...toBridge, then({ goto: 'to-guest' })]],
]

const FROM_GUEST: readonly Rule[] = [
  [[...state(CT_STATE.invalid), then('drop')]],
  ...VERSIONS.map(
    (v): Rule => [[...ip(v), destination(v), lookup(SETS.metadata[v].name), refuse], 'metadata of clouds'],
  ),
  [
    [meta('iifname'), meta('oifname', INTERFACE_WIDTH), lookup(SETS.open.name), accept],
    'peers of an open network, where the host routes between them',
  ],
  ...VERSIONS.flatMap((v): Rule[] => [
    [[...ip(v), source(v), lookup(SETS.none[v].name), refuse]],
    [[...ip(v), source(v), lookup(SETS.limited[v].name), then({ goto: 'listed' })]],
    [[...ip(v), source(v), lookup(SETS.all[v].name), then({ goto: 'out' })]],
  ]),
  [[meta('iifname'), lookup(SETS.unrestricted.name), then({ goto: 'out' })]],
  [[refuse]],
]

const LISTED: readonly Rule[] = [
  ...VERSIONS.flatMap((v): Rule[] => {
    const toWhom = [...ip(v), source(v), destination(v, WIDTH[v]), meta('l4proto', 2 * WIDTH[v])]
    const where = [...toWhom, destinationPort(2 * WIDTH[v] + 1)]
    const out = then({ goto: 'out' })
    return [
      [[...where, lookup(SETS.learned[v].name), out]],
      [[...toWhom, lookup(SETS.learnedWhole[v].name), out]],
      [[...ip(v), source(v), lookup(SETS.lists[v].name, { into: 'verdict' })]],
    ]
  }),
  [[refuse]],
]

const OUT: readonly Rule[] = [
  [[...isPublished, accept], 'published ports, of other guests too'],
  [[...toBridge, refuse], 'other networks'],
  [[accept]],
]

const TO_GUEST: readonly Rule[] = [[[...isPublished, accept]], [[counter(), then('drop')], 'what nobody published']]

const REFUSE: readonly Rule[] = [[[...protocol(TCP), counter(), rejectTcp()]], [[counter(), rejectProhibited()]]]

const INPUT: readonly Rule[] = [STRAY, [[...fromBridge, then({ goto: 'to-host' })]]]

const icmp6 = (type: number): Rule => [
  [...protocol(ICMP6), payload('transport', 0, 1), compare('==', Uint8Array.of(type)), accept],
]

const TO_HOST: readonly Rule[] = [
  [[...state(CT_STATE.established | CT_STATE.related), accept]],
  [[...ip(4), ...toPort(UDP, DHCP), accept], 'DHCP'],
  [[...ip(6), ...toPort(UDP, DHCP6), accept], 'DHCPv6'],
  ...VERSIONS.flatMap((v): Rule[] => [
    [[...toGateway(v), ...toPort(UDP, DNS), accept], 'DNS'],
    [[...toGateway(v), ...toPort(TCP, DNS), accept], 'DNS'],
    [
      [
        ...toGateway(v),
        ...protocol(v === 4 ? ICMP : ICMP6),
        payload('transport', 0, 1),
        compare('==', Uint8Array.of(ECHO[v])),
        accept,
      ],
      'ping',
    ],
  ]),
  // Solicitations of routers and neighbours, advertisements of neighbours, and who listens to what.
  ...[133, 135, 136, 131, 132, 143].map(icmp6),
  [[refuse]],
]

const notLoopback = (version: 4 | 6): Expression[] =>
  version === 4
    ? [destination(4), masked(LOOPBACK4_MASK), compare('!=', LOOPBACK4)]
    : [destination(6), compare('!=', LOOPBACK6)]

const PUBLISHED: readonly Rule[] = VERSIONS.flatMap((v): Rule[] => {
  const family = v === 4 ? FAMILY.ipv4 : FAMILY.ipv6
  return [
    [
      [
        ...ip(v),
        meta('l4proto'),
        destination(v, 1),
        destinationPort(1 + WIDTH[v]),
        lookup(SETS.published[v].name, { into: 0 }),
        dnat(family, 0, WIDTH[v]),
      ],
    ],
    [
      [
        ...ip(v),
        ...notLoopback(v),
        fibDestinationType(),
        compare('==', u32(FIB_LOCAL)),
        meta('l4proto'),
        destinationPort(1),
        lookup(SETS.publishedAnywhere[v].name, { into: 0 }),
        dnat(family, 0, WIDTH[v]),
      ],
    ],
  ]
})

const PREROUTING: readonly Rule[] = [
  ...VERSIONS.flatMap((v): Rule[] => [
    [[...toGateway(v), ...toPort(UDP, DNS), accept], 'the resolver is for guests, whoever publishes its port'],
    [[...toGateway(v), ...toPort(TCP, DNS), accept]],
  ]),
  ...PUBLISHED,
]

const CLAMP: readonly Rule[] = [fromBridge, toBridge].map(
  (way): Rule => [
    [
      ...way,
      ...protocol(TCP),
      payload('transport', 13, 1),
      masked(Uint8Array.of(SYN_OR_RST)),
      compare('==', Uint8Array.of(SYN)),
      ...clampSegment(),
    ],
  ],
)

const postrouting = (network: FirewallNetwork): Rule[] =>
  [network.subnet, network.subnet6].flatMap((subnet): Rule[] => {
    if (subnet === null || !isBehindBridge(network) || network.kind === 'isolated') return []
    const { version, mask, bits: of } = subnetOf(subnet)
    const guest = [...ip(version), source(version), masked(mask), compare('==', of)]
    return [
      [
        [...guest, meta('oifname'), compare('==', interfaceBytes(network.bridge)), ...isPublished, masquerade()],
        `published ports of ${network.name}, from its own guests`,
      ],
      ...(network.nat
        ? [
            [
              [...guest, meta('oifname'), lookupNot(SETS.bridges.name), masquerade()],
              `guests of ${network.name}`,
            ] as const,
          ]
        : []),
    ]
  })

const hook = (kind: Hook['kind'], where: Hook['hook'], priority: number): Hook => ({
  kind,
  hook: where,
  priority,
  policy: 'accept',
})

const chainsOf = (networks: readonly FirewallNetwork[]): (readonly [string, Hook | undefined, readonly Rule[]])[] => [
  ['refuse', undefined, REFUSE],
  ['out', undefined, OUT],
  ['listed', undefined, LISTED],
  ['from-guest', undefined, FROM_GUEST],
  ['to-guest', undefined, TO_GUEST],
  ['to-host', undefined, TO_HOST],
  ['forward', hook('filter', 'forward', 0), FORWARD],
  ['input', hook('filter', 'input', 0), INPUT],
  ['clamp', hook('filter', 'forward', -150), CLAMP],
  ['prerouting', hook('nat', 'prerouting', -100), PREROUTING],
  ['output', hook('nat', 'output', -100), PUBLISHED],
  ['postrouting', hook('nat', 'postrouting', 100), networks.flatMap(postrouting)],
]

/** Elements of the same set together, so that they go in few messages. */
const gathered = (all: Elements): Elements => {
  const bySet = new Map<string, readonly [Elements[number][0], Elements[number][1][number][]]>()
  for (const [set, elements] of all) {
    const known = bySet.get(set.name)
    if (known) known[1].push(...elements)
    else bySet.set(set.name, [set, [...elements]])
  }
  return [...bySet.values()]
}

/** Makes the messages that add elements to their sets. */
export const added = (table: Table, elements: Elements): Message[] =>
  gathered(elements).flatMap(([set, list]) => addElements(table, set, list))

/** Makes the messages that delete elements from their sets. */
export const removed = (table: Table, elements: Elements): Message[] =>
  gathered(elements).flatMap(([set, list]) => deleteElements(table, set, list))

/** What a port of a bridge needs among the rules: what is to be made, and elements that lead to it. */
interface Parts {
  readonly first: Message[]
  readonly elements: Elements
}

const partsOf = (table: Table, nic: FirewallNic, network: FirewallNetwork | undefined, lists: Lists): Parts => {
  const egress = egressOf(nic, network)
  if (egress.policy !== 'allow-list') return { first: [], elements: nicElements(nic, egress) }
  const { chain, first } = lists.use(table, egress.allow)
  return { first, elements: nicElements(nic, egress, chain) }
}

/** Adds a port of a bridge. @throws RangeError: what is no address, no range, no port */
export const nicAdded = (
  table: Table,
  nic: FirewallNic,
  network: FirewallNetwork | undefined,
  lists: Lists,
): Message[] => {
  const { first, elements } = partsOf(table, nic, network, lists)
  return [...first, ...added(table, elements)]
}

/** Takes it away. */
export const nicRemoved = (
  table: Table,
  nic: FirewallNic,
  network: FirewallNetwork | undefined,
  lists: Lists,
): Message[] => {
  const egress = egressOf(nic, network)
  const isListed = egress.policy === 'allow-list'
  return [
    ...removed(table, nicElements(nic, egress, isListed ? '' : undefined)),
    ...(isListed ? lists.leave(table, egress.allow) : []),
  ]
}

/** All elements of a description and what those of ports lead to, but for what was learned. */
const allParts = (table: Table, { networks, nics, published }: Description, lists: Lists): Parts => {
  const byName = new Map(networks.map((network) => [network.name, network]))
  const ports = nics.map((nic) => partsOf(table, nic, byName.get(nic.network), lists))
  return {
    first: ports.flatMap(({ first }) => first),
    elements: [
      ...metadataElements(),
      ...networks.flatMap(networkElements),
      ...ports.flatMap(({ elements }) => elements),
      ...published.flatMap(publishedElements),
    ],
  }
}

/** What is carried over a rebuild. */
export interface Carried {
  /** Elements with what is left of their time. */
  readonly learned?: Elements
  /** What each port's counters said. */
  readonly drops?: ReadonlyMap<string, Partial<Drops>>
  /** The links that are there, where the kernel guards no others; all where left out. */
  readonly there?: ReadonlySet<string> | undefined
}

/**
 * Makes the whole table anew in one batch, so that at no moment there is none. `lists` is one that is empty.
 *
 * @throws RangeError: the description has something that is no address, no name of a link
 */
export const rebuild = (
  name: string,
  description: Description,
  flags: number,
  lists: Lists,
  { learned = [], drops, there }: Carried = {},
): Message[] => {
  const rules = rulesTable(name)
  const ports = guardTable(name)
  const { first, elements } = allParts(rules, description, lists)
  return [
    // One that is not there cannot be deleted; and without flags one of ours or of nobody's is left as it is.
    ...[rules, ports].flatMap((table) => [newTable(table), deleteTable(table), newTable(table, flags)]),
    ...ALL_SETS.map((set) => newSet(rules, set)),
    ...chainsOf(description.networks).map(([chain, base]) => newChain(rules, chain, base)),
    ...chainsOf(description.networks).flatMap(([chain, , list]) =>
      list.map(([expressions, comment]) => newRule(rules, chain, expressions, comment)),
    ),
    ...first,
    ...added(rules, [...elements, ...learned]),
    ...guards(ports),
    ...guard(ports, description.nics, drops, there),
  ]
}

/** Takes the table away, be it there or not. */
export const removeTables = (name: string): Message[] =>
  [rulesTable(name), guardTable(name)].flatMap((table) => [newTable(table), deleteTable(table)])
