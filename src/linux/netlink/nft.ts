import {
  type Attribute,
  attributeList,
  attributesOf,
  FLAG,
  type Message,
  type Received,
  sizeOf as attributeSize,
  text,
  textOf,
  u32be,
  u64be,
} from './message.ts'
import type { Netlink } from './netlink.ts'
import { bare, counter, dataValue, dataVerdict, type Expression, type Verdict } from './nft-expression.ts'

/*
 * Tables, chains, rules, sets and counters of nf_tables (linux/netfilter/nf_tables.h). The functions that make messages
 * send nothing: any number of them goes in one `Netlink.commit`, of which all or nothing is done.
 */

const SUBSYSTEM = 10 << 8
const TYPE = {
  newTable: 0,
  getTable: 1,
  deleteTable: 2,
  newChain: 3,
  getChain: 4,
  deleteChain: 5,
  newRule: 6,
  getRule: 7,
  deleteRule: 8,
  newSet: 9,
  deleteSet: 11,
  newElement: 12,
  getElement: 13,
  deleteElement: 14,
  getGeneration: 16,
  newObject: 18,
  getObject: 19,
  deleteObject: 20,
} as const

/** Families of tables. */
export const FAMILY = { inet: 1, ipv4: 2, netdev: 5, bridge: 7, ipv6: 10 } as const
/** Nobody but the socket that made the table may change it (Linux 5.12), and it outlives that socket (6.9). */
export const TABLE_OWNED = 2
export const TABLE_PERSISTS = 4
/** The longest name of an interface: 15 characters and a NUL (linux/if.h). */
const INTERFACE_NAME_MAX = 15
const INTERFACE_NAME_BYTES = 16
/** A list of elements is one attribute, of at most 64 KiB. */
const LIST_BYTES = 60_000
const ELEMENTS_PER_MESSAGE = 2_000

/** A table: of others, too. */
export interface Table {
  readonly family: number
  readonly name: string
}

const head = (family: number): Uint8Array => Uint8Array.of(family, 0, 0, 0)

const message = ({ family }: Table, type: number, flags: number, attributes: readonly Attribute[]): Message => ({
  type: SUBSYSTEM | type,
  flags,
  head: head(family),
  attributes,
})

/** Makes a table; of one that is there nothing is changed where `flags` is left out. */
export const newTable = (table: Table, flags?: number): Message =>
  message(table, TYPE.newTable, FLAG.create, [
    [1, text(table.name)],
    ...(flags === undefined ? [] : [[2, u32be(flags)] as const]),
  ])

/** Takes a table away, with all that is in it. */
export const deleteTable = (table: Table): Message => message(table, TYPE.deleteTable, 0, [[1, text(table.name)]])

const HOOK = { prerouting: 0, input: 1, forward: 2, output: 3, postrouting: 4, ingress: 0, egress: 1 } as const

/** The place at which a base chain stands in the way of packets. */
export interface Hook {
  readonly kind: 'filter' | 'nat' | 'route'
  readonly hook: keyof typeof HOOK
  readonly priority: number
  readonly policy: 'accept' | 'drop'
  /** Name of the link, for the family `netdev`. */
  readonly device?: string
}

/** Makes the message that makes a chain; with a hook it is a base chain. */
export const newChain = (table: Table, name: string, hook?: Hook): Message =>
  message(table, TYPE.newChain, FLAG.create, [
    [1, text(table.name)],
    [3, text(name)],
    ...(hook === undefined
      ? []
      : [
          [
            4,
            [
              [1, u32be(HOOK[hook.hook])],
              [2, u32be(hook.priority)],
              ...(hook.device === undefined ? [] : [[3, text(checkedInterface(hook.device))] as const]),
            ],
          ] as const,
          [5, u32be(hook.policy === 'accept' ? 1 : 0)] as const,
          [7, text(hook.kind)] as const,
        ]),
  ])

/** Takes a chain away; its rules go first, by `deleteRules`. */
export const deleteChain = (table: Table, name: string): Message =>
  message(table, TYPE.deleteChain, 0, [
    [1, text(table.name)],
    [3, text(name)],
  ])

/** Puts a rule behind those that a chain has. */
export const newRule = (table: Table, chain: string, expressions: readonly Expression[], comment?: string): Message =>
  message(table, TYPE.newRule, FLAG.create | FLAG.append, [
    [1, text(table.name)],
    [2, text(chain)],
    [4, expressions],
    ...(comment === undefined ? [] : [[7, userdata(0, text(comment))] as const]),
  ])

/** Takes all rules of a chain away. */
export const deleteRules = (table: Table, chain: string): Message =>
  message(table, TYPE.deleteRule, 0, [
    [1, text(table.name)],
    [2, text(chain)],
  ])

const userdata = (type: number, value: Uint8Array): Uint8Array =>
  Buffer.concat([Uint8Array.of(type, value.length), value])

/** What a key or a value is: `nft` prints it by this, and the kernel knows its length alone. */
export interface Datatype {
  readonly id: number
  readonly bytes: number
  readonly order: 'host' | 'network'
}

export const DATATYPE = {
  ipv4: { id: 7, bytes: 4, order: 'network' },
  ipv6: { id: 8, bytes: 16, order: 'network' },
  mac: { id: 9, bytes: 6, order: 'network' },
  protocol: { id: 12, bytes: 1, order: 'network' },
  port: { id: 13, bytes: 2, order: 'network' },
  mark: { id: 19, bytes: 4, order: 'host' },
  interface: { id: 41, bytes: INTERFACE_NAME_BYTES, order: 'host' },
} as const satisfies Record<string, Datatype>

const VERDICT_TYPE = 0xffff_ff00
const SET_FLAG = { interval: 4, map: 8, timeout: 16, concatenated: 0x80, expression: 0x100 } as const

/** A set, or a map where `data` says what of. */
export interface SetShape {
  readonly name: string
  /** Several stand one behind the other, each in registers of its own. */
  readonly key: readonly Datatype[]
  readonly data?: readonly Datatype[] | 'verdict'
  /** Elements may be ranges. */
  readonly interval?: boolean
  /** Elements may end by themselves. */
  readonly timeout?: boolean
  /** Each element counts what it matched. */
  readonly counter?: boolean
}

const padded = (bytes: number): number => (bytes + 3) & ~3
const sizeOf = (types: readonly Datatype[]): number =>
  types.length === 1 ? (types[0]?.bytes ?? 0) : types.reduce((sum, { bytes }) => sum + padded(bytes), 0)
/** `nft` folds the ids of several into one number, 6 bits each. */
const idOf = (types: readonly Datatype[]): number => types.reduce((sum, { id }) => (sum << 6) | id, 0)
const BYTE_ORDER = { host: 1, network: 2 } as const
const orderOf = (types: readonly Datatype[]): Uint8Array => {
  const order = Buffer.alloc(4)
  if (types.length === 1) order.writeUInt32LE(BYTE_ORDER[types[0]?.order ?? 'network'])
  return order
}

let lastSetId = 0

/** Makes the message that makes a set, or a map. */
export const newSet = (table: Table, { name, key, data, interval, timeout, counter: counts }: SetShape): Message => {
  const ranges = interval === true && key.length > 1
  const flags =
    (interval ? SET_FLAG.interval : 0) |
    (data ? SET_FLAG.map : 0) |
    (timeout ? SET_FLAG.timeout : 0) |
    (ranges ? SET_FLAG.concatenated : 0) |
    (counts ? SET_FLAG.expression : 0)
  const dataAttributes: readonly Attribute[] =
    data === undefined
      ? []
      : data === 'verdict'
        ? [[6, u32be(VERDICT_TYPE)]]
        : [
            [6, u32be(idOf(data))],
            [7, u32be(sizeOf(data))],
          ]
  lastSetId = (lastSetId % 0x7fff_ffff) + 1
  return message(table, TYPE.newSet, FLAG.create, [
    [1, text(table.name)],
    [2, text(name)],
    [3, u32be(flags)],
    [4, u32be(idOf(key))],
    [5, u32be(sizeOf(key))],
    ...dataAttributes,
    ...(ranges ? [[9, [[2, key.map(({ bytes }) => [1, [[1, u32be(bytes)]]] as const)]]] as const] : []),
    [10, u32be(lastSetId)],
    [
      13,
      Buffer.concat([
        userdata(0, orderOf(key)),
        ...(Array.isArray(data) ? [userdata(1, orderOf(data as readonly Datatype[]))] : []),
      ]),
    ],
    ...(counts ? [[17, bare(counter())] as const] : []),
  ])
}

/** Makes the message that deletes a set. */
export const deleteSet = (table: Table, name: string): Message =>
  message(table, TYPE.deleteSet, 0, [
    [1, text(table.name)],
    [2, text(name)],
  ])

/** The bytes of a key of one field or of several. */
export const keyOf = (types: readonly Datatype[], fields: readonly Uint8Array[]): Uint8Array => {
  const [only] = fields
  if (fields.length === 1 && only) return only
  return Buffer.concat(
    fields.map((field, index) => {
      const bytes = Buffer.alloc(padded(types[index]?.bytes ?? field.length))
      bytes.set(field)
      return bytes
    }),
  )
}

/** One element: a key, or all from one to the other, both in it. */
export interface Element {
  readonly key: Uint8Array
  readonly last?: Uint8Array
  readonly data?: Uint8Array | { readonly verdict: Verdict }
  readonly timeoutMs?: number
  /** What its counter begins with, in a set whose elements count. */
  readonly count?: Count | undefined
  /** A word to whoever reads the table. */
  readonly comment?: string
}

/** What a counter says. */
export interface Count {
  readonly packets: number
  readonly bytes: number
}

const ELEMENT = 1
const INTERVAL_END = 1

const oneMore = (bytes: Uint8Array): Uint8Array | undefined => {
  const next = Buffer.from(bytes)
  for (let at = next.length - 1; at >= 0; at--) {
    next[at] = ((next[at] ?? 0) + 1) & 255
    if (next[at] !== 0) return next
  }
  return undefined
}

const elementOf = ({ key, data, timeoutMs, last, count, comment }: Element, concatenated: boolean): Attribute => [
  ELEMENT,
  [
    [1, dataValue(key)],
    ...(data === undefined ? [] : [[2, 'verdict' in data ? dataVerdict(data.verdict) : dataValue(data)] as const]),
    ...(timeoutMs === undefined ? [] : [[4, u64be(timeoutMs)] as const]),
    ...(comment === undefined ? [] : [[6, userdata(0, text(comment))] as const]),
    ...(count === undefined ? [] : [[7, bare(counter(count))] as const]),
    ...(last !== undefined && concatenated ? [[10, dataValue(last)] as const] : []),
  ],
]

const elementMessages = (
  table: Table,
  type: number,
  { name, key, interval }: SetShape,
  elements: readonly Element[],
): Message[] => {
  const list = elements.flatMap((element) => {
    if (!interval) return [elementOf(element, false)]
    if (key.length > 1) return [elementOf({ ...element, last: element.last ?? element.key }, true)]
    // A set of plain ranges has two elements for each: where it begins, and the first that is no longer in it.
    const end = oneMore(element.last ?? element.key)
    return [elementOf(element, false), ...(end ? [endOfRange(end)] : [])]
  })
  return inLists(list).map((part) =>
    message(table, type, type === TYPE.newElement ? FLAG.create : 0, [
      [1, text(table.name)],
      [2, text(name)],
      [3, part],
    ]),
  )
}

const endOfRange = (key: Uint8Array): Attribute => [
  ELEMENT,
  [
    [1, dataValue(key)],
    [3, u32be(INTERVAL_END)],
  ],
]

/** Cuts a list where an attribute could hold no more. */
const inLists = (list: readonly Attribute[]): Attribute[][] => {
  const parts: Attribute[][] = []
  let part: Attribute[] = []
  let bytes = 0
  for (const one of list) {
    const size = padded(attributeSize(one))
    if (part.length === ELEMENTS_PER_MESSAGE || bytes + size > LIST_BYTES) {
      parts.push(part)
      part = []
      bytes = 0
    }
    part.push(one)
    bytes += size
  }
  return part.length > 0 ? [...parts, part] : parts
}

/** Makes the messages that add elements to a set. */
export const addElements = (table: Table, set: SetShape, elements: readonly Element[]): Message[] =>
  elementMessages(table, TYPE.newElement, set, elements)

/** Takes elements away. The whole batch is refused (ENOENT) where one of them is not there. */
export const deleteElements = (table: Table, set: SetShape, elements: readonly Element[]): Message[] =>
  elementMessages(
    table,
    TYPE.deleteElement,
    set,
    elements.map(({ key, last }) => (last ? { key, last } : { key })),
  )

const COUNTER = 1

/** Makes the message that makes a counter with a name, from a count on. */
export const newCounter = (table: Table, name: string, from: Count = { packets: 0, bytes: 0 }): Message =>
  message(table, TYPE.newObject, FLAG.create, [
    [1, text(table.name)],
    [2, text(name)],
    [3, u32be(COUNTER)],
    [
      4,
      [
        [1, u64be(from.bytes)],
        [2, u64be(from.packets)],
      ],
    ],
  ])

/** Makes the message that deletes a counter. */
export const deleteCounter = (table: Table, name: string): Message =>
  message(table, TYPE.deleteObject, 0, [
    [1, text(table.name)],
    [2, text(name)],
    [3, u32be(COUNTER)],
  ])

const countOf = (bytes: Buffer): Count => {
  const attributes = attributesOf(bytes)
  const number = (type: number): number => Number(attributes.get(type)?.readBigUInt64BE(0) ?? 0n)
  return { bytes: number(1), packets: number(2) }
}

const counterOf = (body: Buffer): [string, Count] => {
  const attributes = attributesOf(body.subarray(4))
  return [textOf(attributes.get(2) ?? Buffer.alloc(0)), countOf(attributes.get(4) ?? Buffer.alloc(0))]
}

/** Reads all named counters of a table. */
export const counters = (netlink: Netlink, table: Table): ReadonlyMap<string, Count> =>
  new Map(
    netlink
      .dump('list counters', {
        ...message(table, TYPE.getObject, 0, [
          [1, text(table.name)],
          [3, u32be(COUNTER)],
        ]),
      })
      .map(({ body }) => counterOf(body)),
  )

/** Reads one named counter; undefined where there is none. */
export const counterNamed = (netlink: Netlink, table: Table, name: string): Count | undefined => {
  const found = netlink.get(
    'read a counter',
    message(table, TYPE.getObject, 0, [
      [1, text(table.name)],
      [2, text(name)],
      [3, u32be(COUNTER)],
    ]),
  )
  return found && counterOf(found.body)[1]
}

/** An element as the kernel has it. */
export interface FoundElement {
  readonly key: Buffer
  readonly last: Buffer | undefined
  readonly data: Buffer | undefined
  /** What is left of its time. */
  readonly expiresMs: number | undefined
  readonly count: Count | undefined
}

const valueIn = (bytes: Buffer | undefined): Buffer | undefined => bytes && attributesOf(bytes).get(1)

const foundElements = (body: Buffer): FoundElement[] =>
  attributeList(attributesOf(body.subarray(4)).get(3) ?? Buffer.alloc(0)).map(([, bytes]) => {
    const attributes = attributesOf(bytes)
    const expression = attributes.get(7)
    const counted = expression && attributesOf(expression).get(2)
    const expires = attributes.get(5)?.readBigUInt64BE(0)
    return {
      key: valueIn(attributes.get(1)) ?? Buffer.alloc(0),
      last: valueIn(attributes.get(10)),
      data: valueIn(attributes.get(2)),
      expiresMs: expires === undefined ? undefined : Number(expires),
      count: counted && countOf(counted),
    }
  })

/** Reads all elements of a set. @throws NetlinkError: ENOENT: there is no such set */
export const elements = (netlink: Netlink, table: Table, set: string): FoundElement[] =>
  netlink
    .dump(
      'list the elements of a set',
      message(table, TYPE.getElement, 0, [
        [1, text(table.name)],
        [2, text(set)],
      ]),
    )
    .flatMap(({ body }) => foundElements(body))

/** Reads some elements of a set, each by its key; none where one of them is not there. */
export const elementsNamed = (
  netlink: Netlink,
  table: Table,
  set: SetShape,
  wanted: readonly Element[],
): FoundElement[] => {
  const [message] = elementMessages(table, TYPE.getElement, set, wanted)
  return (
    (message && netlink.getAll('read elements of a set', message))?.flatMap(({ body }) => foundElements(body)) ?? []
  )
}

/** A table as the kernel has it. */
export interface FoundTable extends Table {
  readonly flags: number
}

/** Lists the tables of all families. */
export const tables = (netlink: Netlink): FoundTable[] =>
  netlink.dump('list tables', { type: SUBSYSTEM | TYPE.getTable, head: head(0) }).map(({ body }) => {
    const attributes = attributesOf(body.subarray(4))
    return {
      family: body[0] ?? 0,
      name: textOf(attributes.get(1) ?? Buffer.alloc(0)),
      flags: attributes.get(2)?.readUInt32BE(0) ?? 0,
    }
  })

/** A chain as the kernel has it; `hook` of a base chain alone. */
export interface FoundChain {
  readonly table: Table
  readonly name: string
  readonly hook: number | undefined
  readonly priority: number
  readonly policy: 'accept' | 'drop' | undefined
}

/** Lists the chains of all tables. */
export const chains = (netlink: Netlink): FoundChain[] =>
  netlink.dump('list chains', { type: SUBSYSTEM | TYPE.getChain, head: head(0) }).map(({ body }) => {
    const attributes = attributesOf(body.subarray(4))
    const hook = attributes.get(4)
    const inner = hook && attributesOf(hook)
    const policy = attributes.get(5)?.readUInt32BE(0)
    return {
      table: { family: body[0] ?? 0, name: textOf(attributes.get(1) ?? Buffer.alloc(0)) },
      name: textOf(attributes.get(3) ?? Buffer.alloc(0)),
      hook: inner?.get(1)?.readUInt32BE(0),
      priority: inner?.get(2)?.readInt32BE(0) ?? 0,
      policy: policy === undefined ? undefined : policy === 0 ? 'drop' : 'accept',
    }
  })

/**
 * Names the links that a chain of the family `netdev` stands at, as far as they are there where the kernel goes by
 * links and not by names; undefined where there is no such chain. @throws NetlinkError
 */
export const devicesOf = (netlink: Netlink, table: Table, name: string): string[] | undefined => {
  const found = netlink.get(
    'look for a chain',
    message(table, TYPE.getChain, 0, [
      [1, text(table.name)],
      [3, text(name)],
    ]),
  )
  const hook = found && attributesOf(found.body.subarray(4)).get(4)
  const devices = hook && attributesOf(hook).get(4)
  return found && attributeList(devices ?? Buffer.alloc(0)).map(([, device]) => textOf(device))
}

/** What a rule of whomever does, as far as its expressions can be read: each its name and its attributes. */
export interface FoundRule {
  readonly table: Table
  readonly chain: string
  readonly expressions: readonly { readonly name: string; readonly attributes: ReadonlyMap<number, Buffer> }[]
}

/** Lists the rules of all tables. */
export const rules = (netlink: Netlink): FoundRule[] =>
  netlink.dump('list rules', { type: SUBSYSTEM | TYPE.getRule, head: head(0) }).map(({ body }) => {
    const attributes = attributesOf(body.subarray(4))
    return {
      table: { family: body[0] ?? 0, name: textOf(attributes.get(1) ?? Buffer.alloc(0)) },
      chain: textOf(attributes.get(2) ?? Buffer.alloc(0)),
      expressions: attributeList(attributes.get(4) ?? Buffer.alloc(0)).map(([, bytes]) => {
        const parts = attributesOf(bytes)
        return {
          name: textOf(parts.get(1) ?? Buffer.alloc(0)),
          attributes: attributesOf(parts.get(2) ?? Buffer.alloc(0)),
        }
      }),
    }
  })

/** The multicast group NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h). */
const CHANGES_GROUP = 7
const TABLE_CHANGES: readonly number[] = [
  TYPE.newTable,
  TYPE.deleteTable,
  TYPE.newChain,
  TYPE.deleteChain,
  TYPE.newRule,
  TYPE.deleteRule,
  TYPE.newSet,
  TYPE.deleteSet,
  TYPE.newElement,
  TYPE.deleteElement,
  TYPE.newObject,
  TYPE.deleteObject,
]

/** Hears what is changed in any table: `receive` has it. */
export const hearChanges = (netlink: Netlink): void => netlink.join(CHANGES_GROUP)

/** The table that what was heard is about. */
export const changedTable = ({ type, body }: Received): Table | undefined => {
  if ((type & 0xff00) !== SUBSYSTEM || !TABLE_CHANGES.includes(type & 0xff) || body.length < 4) return undefined
  const name = attributesOf(body.subarray(4)).get(1)
  return name && { family: body[0] ?? 0, name: textOf(name) }
}

/** The number of a socket, as messages about what it changed carry it. */
export const socketNumber = (netlink: Netlink): number =>
  netlink.get('ask for the generation', { type: SUBSYSTEM | TYPE.getGeneration, head: head(0) })?.socket ?? 0

/** Checks the name of a link before the kernel does with fewer words. @throws RangeError */
export const checkedInterface = (name: string): string => {
  if (name === '' || Buffer.byteLength(name) > INTERFACE_NAME_MAX)
    throw new RangeError(`the name of a link has 1 to ${INTERFACE_NAME_MAX} bytes: ${JSON.stringify(name)}`)
  return name
}

/** The bytes of a link's name as registers hold it. @throws RangeError */
export const interfaceBytes = (name: string): Uint8Array => {
  const bytes = Buffer.alloc(INTERFACE_NAME_BYTES)
  bytes.write(checkedInterface(name))
  return bytes
}
