import { isIPv4, isIPv6 } from 'node:net'
import { readV4, readV6 } from '../address.ts'

/** All addresses from one to another, both in it; one address where both are the same. */
export interface Range {
  readonly version: 4 | 6
  readonly first: bigint
  readonly last: bigint
}

export const BITS = { 4: 32, 6: 128 } as const

const numberOf = (version: 4 | 6, text: string): bigint =>
  version === 4 ? BigInt(readV4(text) ?? 0) : BigInt(`0x${Buffer.from(readV6(text) ?? [0]).toString('hex')}`)

/** Reads `10.0.0.1`, `10.0.0.0/8` or the same of IPv6; bits behind the length are cleared. @throws RangeError */
export const readRange = (text: string): Range => {
  const [address = '', length] = text.split('/')
  const version = isIPv4(address) ? 4 : isIPv6(address) && !address.includes('%') ? 6 : undefined
  const bits = version && BITS[version]
  const prefix = length === undefined ? bits : /^\d{1,3}$/.test(length) ? Number(length) : undefined
  if (version === undefined || bits === undefined || prefix === undefined || prefix > bits)
    throw new RangeError(`no address and no range of addresses: ${JSON.stringify(text)}`)
  const number = numberOf(version, address)
  const host = (1n << BigInt(bits - prefix)) - 1n
  return { version, first: number & ~host, last: number | host }
}

/** The bytes of an address as packets have them. */
export const addressBytes = (version: 4 | 6, address: bigint): Uint8Array =>
  Buffer.from(address.toString(16).padStart(BITS[version] / 4, '0'), 'hex')

/** The bytes of one address's text. @throws RangeError */
export const bytesOf = (text: string): Uint8Array => {
  const { version, first } = readRange(text)
  return addressBytes(version, first)
}

/** A text of 6 bytes: `02:00:00:00:00:01`. @throws RangeError */
export const macBytes = (text: string): Uint8Array => {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) throw new RangeError(`no MAC address: ${JSON.stringify(text)}`)
  return Buffer.from(text.replaceAll(':', ''), 'hex')
}

/** The link-local address that a link with this MAC address gives itself (RFC 4291, appendix A). */
export const linkLocalOf = (mac: Uint8Array): Uint8Array => {
  const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0] = mac
  return Uint8Array.of(0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f)
}

/** What of `a` is not in `b`, with all dimensions of both: boxes that do not overlap. */
export type Box = readonly (readonly [first: bigint, last: bigint])[]

const minus = (a: Box, b: Box): Box[] => {
  if (a.some(([first, last], at) => last < (b[at]?.[0] ?? 0n) || first > (b[at]?.[1] ?? 0n))) return [a]
  const left: Box[] = []
  let rest = a
  for (const [at, [first, last]] of b.entries()) {
    const [from, to] = rest[at] ?? [0n, 0n]
    const cut = (part: readonly [bigint, bigint]): Box => rest.map((side, index) => (index === at ? part : side))
    if (from < first) left.push(cut([from, first - 1n]))
    if (to > last) left.push(cut([last + 1n, to]))
    rest = cut([from > first ? from : first, to < last ? to : last])
  }
  return left
}

/** The same space in boxes of which no two overlap: a set of the kernel's takes no others. */
export const disjoint = (boxes: readonly Box[]): Box[] => {
  const found: Box[] = []
  for (const box of boxes)
    found.push(...found.reduce<Box[]>((left, one) => left.flatMap((part) => minus(part, one)), [box]))
  return found
}
