import { isIPv4, isIPv6 } from 'node:net'

/*
 * Addresses as numbers. IPv4 is a number below 2^32; IPv6, of which only prefixes of 64 bits are handed out here, is
 * bytes.
 */

/** Reads `10.0.0.1`; undefined where it is none. */
export const readV4 = (text: string): number | undefined =>
  isIPv4(text) ? text.split('.').reduce((number, part) => number * 256 + Number(part), 0) : undefined

/** Writes a number as an IPv4 address. */
export const sayV4 = (number: number): string => [24, 16, 8, 0].map((bits) => (number >>> bits) & 255).join('.')

/** The bytes of an IPv4 address. */
export const bytesV4 = (number: number): Uint8Array => Uint8Array.of(number >>> 24, number >>> 16, number >>> 8, number)

/** A range of IPv4 addresses: those whose first `length` bits are those of `first`. */
export interface Range4 {
  readonly first: number
  readonly last: number
  readonly length: number
}

/** Reads `10.0.0.0/24`; undefined where it is none, or has bits behind its length. */
export const readRange4 = (text: string): Range4 | undefined => {
  const [address = '', bits = ''] = text.split('/')
  const first = readV4(address)
  const length = /^\d{1,2}$/.test(bits) ? Number(bits) : 33
  if (first === undefined || length > 32) return undefined
  const size = 2 ** (32 - length)
  return first % size === 0 ? { first, last: first + size - 1, length } : undefined
}

export const sayRange4 = ({ first, length }: Range4): string => `${sayV4(first)}/${length}`

/** Whether two ranges have an address in common. */
export const overlap = (a: Pick<Range4, 'first' | 'last'>, b: Pick<Range4, 'first' | 'last'>): boolean =>
  a.first <= b.last && b.first <= a.last

/** Reads an IPv6 address into its 16 bytes; undefined where it is none. */
export const readV6 = (text: string): Uint8Array | undefined => {
  if (!isIPv6(text) || text.includes('%')) return undefined
  const dotted = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(text)
  const last = dotted ? readV4(dotted[2] ?? '') : undefined
  const plain =
    dotted && last !== undefined ? `${dotted[1]}${(last >>> 16).toString(16)}:${(last & 0xffff).toString(16)}` : text
  const [head = '', tail] = plain.split('::')
  const words = (part: string | undefined): number[] =>
    part === undefined || part === '' ? [] : part.split(':').map((word) => Number.parseInt(word, 16))
  const [before, behind] = [words(head), words(tail)]
  const all =
    tail === undefined ? before : [...before, ...Array<number>(8 - before.length - behind.length).fill(0), ...behind]
  const bytes = Buffer.alloc(16)
  for (const [index, word] of all.entries()) bytes.writeUInt16BE(word, index * 2)
  return bytes
}

/** Writes 16 bytes as RFC 5952 wants them. */
export const sayV6 = (bytes: Uint8Array): string => {
  const words = Array.from({ length: 8 }, (_, index) => ((bytes[index * 2] ?? 0) << 8) | (bytes[index * 2 + 1] ?? 0))
  let best = { at: -1, length: 1 }
  for (let at = 0; at < 8; at++) {
    let length = 0
    while (at + length < 8 && words[at + length] === 0) length++
    if (length > best.length) best = { at, length }
  }
  const say = (part: readonly number[]) => part.map((word) => word.toString(16)).join(':')
  if (best.at < 0) return say(words)
  return `${say(words.slice(0, best.at))}::${say(words.slice(best.at + best.length))}`
}

/** A prefix of 64 bits, and the address in it that ends in a number. */
export interface Prefix6 {
  readonly bytes: Uint8Array
  readonly length: 64
}

/** Reads `fd00::/64`; undefined where it is none, or has bits behind its length. */
export const readPrefix6 = (text: string): Prefix6 | undefined => {
  const [address = '', bits] = text.split('/')
  const bytes = readV6(address)
  return bytes && bits === '64' && bytes.subarray(8).every((byte) => byte === 0) ? { bytes, length: 64 } : undefined
}

export const inPrefix6 = ({ bytes }: Prefix6, number: number): Uint8Array => {
  const address = Buffer.from(bytes)
  address.writeUInt32BE(number >>> 0, 12)
  return address
}
