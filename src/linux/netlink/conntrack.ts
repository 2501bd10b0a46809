import { hasCode } from '../errno.ts'
import { type Attribute, attributesOf, type Message, u32 } from './message.ts'
import type { Netlink } from './netlink.ts'

/*
 * Flows that the kernel follows (linux/netfilter/nfnetlink_conntrack.h): what was let through once stays let through
 * until its flow is forgotten.
 */

const SUBSYSTEM = 1 << 8
const TYPE = { get: 1, delete: 2 } as const
const CTA = { original: 1, reply: 2, id: 12, filter: 25 } as const
const TUPLE = { ip: 1, protocol: 2 } as const
const IP = { source4: 1, destination4: 2, source6: 3, destination6: 4 } as const
const PROTOCOL = { number: 1, sourcePort: 2, destinationPort: 3 } as const
/** Compare the source of a tuple, and nothing else of it. */
const FILTER_SOURCE = 1
const NESTED = 0x8000
const AF_INET = 2
const AF_INET6 = 10

/** One way of a flow; ports are 0 where the protocol has none. */
export interface Tuple {
  readonly source: Buffer
  readonly destination: Buffer
  readonly protocol: number
  readonly sourcePort: number
  readonly destinationPort: number
}

export interface Flow {
  /** The way of its first packet, before anything was rewritten. */
  readonly original: Tuple
  readonly reply: Tuple
  readonly forget: Message
}

const head = (family: number): Uint8Array => Uint8Array.of(family, 0, 0, 0)

const tupleOf = (bytes: Buffer): Tuple => {
  const parts = attributesOf(bytes)
  const ip = attributesOf(parts.get(TUPLE.ip) ?? Buffer.alloc(0))
  const protocol = attributesOf(parts.get(TUPLE.protocol) ?? Buffer.alloc(0))
  return {
    source: ip.get(IP.source4) ?? ip.get(IP.source6) ?? Buffer.alloc(0),
    destination: ip.get(IP.destination4) ?? ip.get(IP.destination6) ?? Buffer.alloc(0),
    protocol: protocol.get(PROTOCOL.number)?.[0] ?? 0,
    sourcePort: protocol.get(PROTOCOL.sourcePort)?.readUInt16BE(0) ?? 0,
    destinationPort: protocol.get(PROTOCOL.destinationPort)?.readUInt16BE(0) ?? 0,
  }
}

/** Beyond so many addresses it takes less time to look at all flows once. */
const FILTERED_MAX = 4

const request = (family: number, filter: readonly Attribute[]): Message => ({
  type: SUBSYSTEM | TYPE.get,
  head: head(family),
  attributes: filter,
})

const sourceFilter = (address: Uint8Array, way: 'original' | 'reply'): Attribute[] => [
  [CTA[way], [[TUPLE.ip, [[address.length === 4 ? IP.source4 : IP.source6, address]]]]],
  [CTA.filter, [[way === 'original' ? 1 : 2, u32(FILTER_SOURCE)]]],
]

/**
 * Lists the flows whose packets come from one of some addresses: those that it began (`original`), or those whose
 * answers come from it (`reply`). Takes as long as the kernel needs to walk all flows of the host, but not on this
 * thread.
 */
export const flowsFrom = async (
  netlink: Netlink,
  addresses: readonly Uint8Array[],
  way: 'original' | 'reply',
): Promise<Flow[]> => {
  const wanted = new Set(addresses.map((address) => Buffer.from(address).toString('hex')))
  const families = new Set(addresses.map(({ length }) => (length === 4 ? AF_INET : AF_INET6)))
  const requests =
    addresses.length <= FILTERED_MAX
      ? addresses.map((address) => request(address.length === 4 ? AF_INET : AF_INET6, sourceFilter(address, way)))
      : [...families].map((family) => request(family, []))
  const found: Flow[] = []
  for (const one of requests)
    for (const { body } of await netlink.dumpAside('list flows', one)) {
      const flow = flowOf(body)
      if (flow && wanted.has(flow[way].source.toString('hex'))) found.push(flow)
    }
  return found
}

const flowOf = (body: Buffer): Flow | undefined => {
  const attributes = attributesOf(body.subarray(4))
  const original = attributes.get(CTA.original)
  const reply = attributes.get(CTA.reply)
  const id = attributes.get(CTA.id)
  if (!original || !reply || !id) return undefined
  return {
    original: tupleOf(original),
    reply: tupleOf(reply),
    forget: {
      type: SUBSYSTEM | TYPE.delete,
      head: head(body[0] ?? 0),
      attributes: [
        [CTA.original | NESTED, original],
        [CTA.id, id],
      ],
    },
  }
}

/** Forgets flows: their next packet is looked at as if it were the first. One that has ended meanwhile is no matter. */
export const forgetFlows = (netlink: Netlink, flows: readonly Flow[]): void => {
  for (const { forget } of flows) {
    try {
      netlink.apply('forget a flow', [forget])
    } catch (error) {
      if (!hasCode(error, 'ENOENT')) throw error
    }
  }
}
