import type { Tuple } from '../../linux/netlink/conntrack.ts'
import type { Message } from '../../linux/netlink/message.ts'
import {
  addElements,
  DATATYPE,
  deleteChain,
  deleteRules,
  deleteSet,
  type Element,
  FAMILY,
  keyOf,
  newChain,
  newRule,
  newSet,
  type SetShape,
  type Table,
} from '../../linux/netlink/nft.ts'
import { compare, lookup, meta, payload, port, verdict } from '../../linux/netlink/nft-expression.ts'
import type { Allow } from './description.ts'
import { addressBytes, type Box, disjoint, readRange } from './range.ts'
import { protocolsOf, readPorts } from './sets.ts'

const { ipv4, ipv6, protocol, port: portType } = DATATYPE
const VERSIONS = [4, 6] as const
const EVERYWHERE = ['0.0.0.0/0', '::/0'] as const

const boxesOf = ({ name, cidr, proto, ports }: Allow, version: 4 | 6): Box[] => {
  if (name !== undefined) return []
  const ranges = (cidr === undefined ? EVERYWHERE : [cidr]).map(readRange)
  const portRanges = ports && ports.length > 0 ? ports.map(readPorts) : [[0, 65535] as const]
  return ranges
    .filter((range) => range.version === version)
    .flatMap(({ first, last }) =>
      protocolsOf({ proto, ports }, version).flatMap((protocols) =>
        portRanges.map(
          (range) =>
            [
              [first, last],
              [BigInt(protocols[0]), BigInt(protocols[1])],
              [BigInt(range[0]), BigInt(range[1])],
            ] satisfies Box,
        ),
      ),
    )
}

const setsOf = (name: string): Readonly<Record<4 | 6, SetShape>> => ({
  4: { name: `${name}-4`, key: [ipv4, protocol, portType], interval: true },
  6: { name: `${name}-6`, key: [ipv6, protocol, portType], interval: true },
})

const elementsOf = (set: SetShape, version: 4 | 6, allow: readonly Allow[]): Element[] => {
  const corner = (box: Box, at: 0 | 1): Uint8Array =>
    keyOf(set.key, [
      addressBytes(version, box[0]?.[at] ?? 0n),
      Uint8Array.of(Number(box[1]?.[at] ?? 0n)),
      port(Number(box[2]?.[at] ?? 0n)),
    ])
  return disjoint(allow.flatMap((rule) => boxesOf(rule, version))).map((box) => ({
    key: corner(box, 0),
    last: corner(box, 1),
  }))
}

/** A chain with a set for each kind of address, which it looks into. */
const made = (table: Table, name: string, allow: readonly Allow[]): Message[] => [
  newChain(table, name),
  ...VERSIONS.flatMap((version) => {
    const set = setsOf(name)[version]
    const width = version === 4 ? 1 : 4
    return [
      newSet(table, set),
      ...addElements(table, set, elementsOf(set, version, allow)),
      newRule(table, name, [
        meta('nfproto'),
        compare('==', Uint8Array.of(version === 4 ? FAMILY.ipv4 : FAMILY.ipv6)),
        version === 4 ? payload('network', 16, 4) : payload('network', 24, 16),
        meta('l4proto', width),
        payload('transport', 2, 2, width + 1),
        lookup(set.name),
        verdict({ goto: 'out' }),
      ]),
    ]
  }),
  newRule(table, name, [verdict({ goto: 'refuse' })]),
]

const gone = (table: Table, name: string): Message[] => [
  deleteRules(table, name),
  deleteChain(table, name),
  ...VERSIONS.map((version) => deleteSet(table, setsOf(name)[version].name)),
]

interface List {
  readonly chain: string
  uses: number
}

/**
 * The allow-lists that are in use, each there once as a chain, however many guests share it: a set of ranges takes
 * longer with every element that it has.
 */
export class Lists {
  readonly #lists: Map<string, List>
  #last: number

  constructor(from?: Lists) {
    this.#lists = new Map([...(from ? from.#lists : [])].map(([content, list]) => [content, { ...list }]))
    this.#last = from ? from.#last : 0
  }

  /** Uses a list once more: says its chain, and what is to be made first. @throws RangeError: a line that is none */
  use(table: Table, allow: readonly Allow[]): { readonly chain: string; readonly first: Message[] } {
    const content = contentOf(allow)
    const known = this.#lists.get(content)
    if (known) {
      known.uses++
      return { chain: known.chain, first: [] }
    }
    const chain = `list-${++this.#last}`
    const first = made(table, chain, allow)
    this.#lists.set(content, { chain, uses: 1 })
    return { chain, first }
  }

  /** Uses a list once less, and says what is to be removed afterwards. */
  leave(table: Table, allow: readonly Allow[]): Message[] {
    const content = contentOf(allow)
    const known = this.#lists.get(content)
    if (!known || --known.uses > 0) return []
    this.#lists.delete(content)
    return gone(table, known.chain)
  }
}

/** Whether a list lets a flow through, names aside. */
export const listLets = (allow: readonly Allow[], { destination, protocol, destinationPort }: Tuple): boolean => {
  const version = destination.length === 4 ? 4 : 6
  const flow = [BigInt(`0x${destination.toString('hex')}`), BigInt(protocol), BigInt(destinationPort)]
  return allow.some((rule) =>
    boxesOf(rule, version).some((box) => box.every(([first, last], at) => within(flow[at], first, last))),
  )
}

const within = (number: bigint | undefined, first: bigint, last: bigint): boolean =>
  number !== undefined && number >= first && number <= last

const contentOf = (allow: readonly Allow[]): string =>
  JSON.stringify(allow.filter(({ name }) => name === undefined).map(({ cidr, proto, ports }) => [cidr, proto, ports]))
