import { bytesOf, linkLocalOf, macBytes } from '../../../src/network/firewall/range.ts'

/* Frames of Ethernet in hexadecimal, true or forged, for `Place.send`. */

const BROADCAST = 'ff:ff:ff:ff:ff:ff'
const hex = (...parts: readonly (Uint8Array | string | number)[]): string =>
  parts
    .map((part) =>
      typeof part === 'number'
        ? part.toString(16).padStart(4, '0')
        : typeof part === 'string'
          ? part
          : Buffer.from(part).toString('hex'),
    )
    .join('')

const sum = (bytes: Uint8Array): number => {
  let total = 0
  for (let at = 0; at < bytes.length; at += 2) total += ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0)
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16)
  return ~total & 0xffff
}

export const ethernet = (from: string, type: number, payload: string, to = BROADCAST): string =>
  hex(macBytes(to), macBytes(from), type, payload)

/** An ARP message: `operation` 1 asks, 2 answers. */
export const arp = (from: string, operation: number, mac: string, address: string, target: string): string =>
  ethernet(from, 0x0806, arpPayload(operation, mac, address, target))

export const arpPayload = (operation: number, mac: string, address: string, target: string): string =>
  hex('0001080006 04'.replace(' ', ''), operation, macBytes(mac), bytesOf(address), '000000000000', bytesOf(target))

export const udpPayload = (source: number, destination: number, data = '00000000'): string =>
  hex(source, destination, 8 + data.length / 2, 0, data)

export const ipv4 = (from: string, source: string, destination: string, protocol: number, payload: string): string => {
  const header = (check: number): string =>
    hex(
      '4500',
      20 + payload.length / 2,
      '00000000',
      `40${protocol.toString(16).padStart(2, '0')}`,
      check,
      bytesOf(source),
      bytesOf(destination),
    )
  return ethernet(from, 0x0800, header(sum(Buffer.from(header(0), 'hex'))) + payload)
}

export const ICMP6 = 58

/** A message of ICMPv6, its checksum right. */
export const icmp6 = (source: string, destination: string, type: number, body: string): string => {
  const message = (check: number): string => hex(`${type.toString(16).padStart(2, '0')}00`, check, body)
  const bare = message(0)
  const pseudo = hex(bytesOf(source), bytesOf(destination), 0, bare.length / 2, 0, ICMP6)
  return message(sum(Buffer.from(pseudo + bare, 'hex')))
}

export const ipv6 = (from: string, source: string, destination: string, next: number, payload: string): string =>
  ethernet(
    from,
    0x86dd,
    hex(
      '60000000',
      payload.length / 2,
      `${next.toString(16).padStart(2, '0')}ff`,
      bytesOf(source),
      bytesOf(destination),
      payload,
    ),
  )

/** Puts an empty extension header before a payload: 0 hop by hop, 60 for the destination. */
export const extended = (next: number, payload: string): string =>
  hex(`${next.toString(16).padStart(2, '0')}00010400000000`.slice(0, 16), payload)

/** Puts a header of a fragment before a payload. */
export const fragment = (next: number, offset: number, more: boolean, payload: string): string =>
  hex(`${next.toString(16).padStart(2, '0')}00`, (offset << 3) | (more ? 1 : 0), '00000001', payload)

const words = (bytes: Uint8Array): string =>
  Array.from({ length: 8 }, (_, at) =>
    Buffer.from(bytes)
      .readUInt16BE(at * 2)
      .toString(16),
  ).join(':')

/** The link-local address of a MAC address. */
export const linkLocal = (mac: string): string => words(linkLocalOf(macBytes(mac)))

/** A router advertisement's body: 64 hops, for half an hour. */
export const ROUTER = hex('4000', 1800, '0000000000000000')
/** The body of a solicitation or an advertisement of a neighbour. */
export const neighbour = (target: string, flags = '00000000'): string => hex(flags, bytesOf(target))
