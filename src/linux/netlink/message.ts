/*
 * Netlink messages (netlink(7), linux/netlink.h): a header of 16 bytes, a structure of the family's own, and
 * attributes, each a length, a type and a value, padded to 4 bytes. Numbers are in the host's order, which is little on
 * every machine that aerie runs on; where a family wants them big (nf_tables, ports, addresses) the writer of the
 * attribute says so.
 */

/** The flags of a message, by linux/netlink.h. */
export const FLAG = {
  request: 1,
  multi: 2,
  ack: 4,
  dump: 0x300,
  replace: 0x100,
  excl: 0x200,
  create: 0x400,
  append: 0x800,
} as const
export const TYPE = { error: 2, done: 3 } as const
const NESTED = 0x8000
const TYPE_MASK = 0x3fff
export const HEADER_BYTES = 16
/** What an attribute can hold: its length has 16 bits and counts its own header. */
export const ATTRIBUTE_BYTES_MAX = 0xffff - 4

/** One attribute: its type and its value, which may be more attributes. */
export type Attribute = readonly [type: number, value: Uint8Array | readonly Attribute[]]

/** One message but for its number. */
export interface Message {
  readonly type: number
  /** `FLAG.request` is added. */
  readonly flags?: number
  /** The family's structure. */
  readonly head: Uint8Array
  readonly attributes?: readonly Attribute[]
}

/** Writes a number of 8 bits. */
export const u8 = (value: number): Uint8Array => Uint8Array.of(value)

/** Writes a number of 16 bits in the order of the host, which is little-endian wherever aerie runs. */
export const u16 = (value: number): Uint8Array => {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16LE(value)
  return bytes
}

/** Writes a number of 16 bits in the order of the network. */
export const u16be = (value: number): Uint8Array => {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}

/** Writes a number of 32 bits in the order of the host. */
export const u32 = (value: number): Uint8Array => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value >>> 0)
  return bytes
}

/** Writes a number of 32 bits in the order of the network. */
export const u32be = (value: number): Uint8Array => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value >>> 0)
  return bytes
}

/** Writes a number of 64 bits in the order of the host. */
export const u64 = (value: number | bigint): Uint8Array => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  return bytes
}

/** Writes a number of 64 bits in the order of the network. */
export const u64be = (value: number | bigint): Uint8Array => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}
/** Writes a text with the NUL that the kernel wants. */
export const text = (value: string): Uint8Array => Buffer.from(`${value}\0`)

const padded = (bytes: number): number => (bytes + 3) & ~3

/** Tells what an attribute takes, its own header counted, without what pads it. */
export const sizeOf = ([, value]: Attribute): number =>
  4 + (value instanceof Uint8Array ? value.length : value.reduce((sum, one) => sum + padded(sizeOf(one)), 0))

const writeAttribute = (into: Buffer, at: number, attribute: Attribute): number => {
  const [type, value] = attribute
  const size = sizeOf(attribute)
  if (size > ATTRIBUTE_BYTES_MAX + 4) throw new RangeError(`attribute ${type} of ${size} bytes`)
  into.writeUInt16LE(size, at)
  if (value instanceof Uint8Array) {
    into.writeUInt16LE(type, at + 2)
    into.set(value, at + 4)
  } else {
    into.writeUInt16LE(type | NESTED, at + 2)
    let inner = at + 4
    for (const one of value) inner = writeAttribute(into, inner, one)
  }
  return at + padded(size)
}

/** Writes messages one behind the other, numbered from `first` on. */
export const encode = (messages: readonly Message[], first: number): Buffer => {
  const sizes = messages.map(
    ({ head, attributes = [] }) =>
      HEADER_BYTES + padded(head.length) + attributes.reduce((sum, one) => sum + padded(sizeOf(one)), 0),
  )
  const bytes = Buffer.alloc(sizes.reduce((sum, size) => sum + size, 0))
  let at = 0
  for (const [index, { type, flags = 0, head, attributes = [] }] of messages.entries()) {
    const size = sizes[index] ?? 0
    bytes.writeUInt32LE(size, at)
    bytes.writeUInt16LE(type, at + 4)
    bytes.writeUInt16LE(flags | FLAG.request, at + 6)
    bytes.writeUInt32LE(first + index, at + 8)
    bytes.set(head, at + HEADER_BYTES)
    let inner = at + HEADER_BYTES + padded(head.length)
    for (const one of attributes) inner = writeAttribute(bytes, inner, one)
    at += size
  }
  return bytes
}

/** A message as it came: `body` begins with the family's structure. */
export interface Received {
  readonly type: number
  readonly flags: number
  readonly sequence: number
  /** The number of the socket that asked for it, or that changed what it tells of. */
  readonly socket: number
  readonly body: Buffer
}

/** Reads the messages of one datagram; what is cut short at its end is left out. */
export const decode = (datagram: Buffer): Received[] => {
  const found: Received[] = []
  for (let at = 0; at + HEADER_BYTES <= datagram.length; ) {
    const size = datagram.readUInt32LE(at)
    if (size < HEADER_BYTES || at + size > datagram.length) break
    found.push({
      type: datagram.readUInt16LE(at + 4),
      flags: datagram.readUInt16LE(at + 6),
      sequence: datagram.readUInt32LE(at + 8),
      socket: datagram.readUInt32LE(at + 12),
      body: datagram.subarray(at + HEADER_BYTES, at + size),
    })
    at += padded(size)
  }
  return found
}

/** Reads attributes by their type; of several of one type the last counts. `attributeList` keeps them all. */
export const attributesOf = (bytes: Buffer): ReadonlyMap<number, Buffer> => new Map(attributeList(bytes))

/** Reads attributes in their order. */
export const attributeList = (bytes: Buffer): (readonly [number, Buffer])[] => {
  const found: (readonly [number, Buffer])[] = []
  for (let at = 0; at + 4 <= bytes.length; ) {
    const size = bytes.readUInt16LE(at)
    if (size < 4 || at + size > bytes.length) break
    found.push([bytes.readUInt16LE(at + 2) & TYPE_MASK, bytes.subarray(at + 4, at + size)])
    at += padded(size)
  }
  return found
}

/** Reads a text up to its NUL. */
export const textOf = (bytes: Buffer): string => {
  const end = bytes.indexOf(0)
  return bytes.toString('utf8', 0, end < 0 ? bytes.length : end)
}
