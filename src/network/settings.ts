import { isIPv6 } from 'node:net'
import { randomBytes } from 'node:crypto'
import type { NetworkCreate } from '../contract/network.ts'
import { RESERVED_NETWORK_NAMES } from '../contract/network.ts'
import type { Filled } from '../contract/schema.ts'
import type { NetworkSpec } from '../store/schema.ts'
import { overlap, type Range4, readPrefix6, readRange4, readV4, sayRange4, sayV4, sayV6 } from './address.ts'
import { networkConflict, networkInvalid } from './errors.ts'
import { unfit } from './leases.ts'

/** Ranges that nobody asked for begin here: 10.42.0.0/24 and those behind it. */
const FIRST = readV4('10.42.0.0') ?? 0
const RANGES_MAX = 256 * 22
/** The longest prefix that has room for a gateway and somebody else. */
const LENGTH_MAX = 30
const LENGTH_MIN = 12

/** What a network is told about its range, or what was found for it. */
export interface Ranges {
  readonly subnet: string | null
  readonly gateway: string | null
  readonly subnet6: string | null
}

/** What is taken already, on this host and by other networks. */
export interface Taken {
  readonly routed: readonly Range4[]
  readonly networks: readonly {
    readonly name: string
    readonly subnet: string | null
    readonly subnet6: string | null
  }[]
}

/** Checks what a new network is told, and fills what it is not told. @throws `network_invalid`, `network_conflict` */
export const settingsOf = (
  want: Filled<typeof NetworkCreate>,
  taken: Taken,
): { readonly ranges: Ranges; readonly spec: NetworkSpec } => {
  const invalid = (reason: string, hint?: string) =>
    networkInvalid({ name: want.name, reason, ...(hint !== undefined && { hint }) })
  if ((RESERVED_NETWORK_NAMES as readonly string[]).includes(want.name))
    throw invalid(`"${want.name}" stands for a way of being connected`, 'Choose another name')
  if (/^\d+$/.test(want.name)) throw invalid('a name is not digits alone', 'Choose another name')
  checkEgress(want.egress, invalid)
  const { peer, egress, dhcp, reservations } = want
  if (want.type === 'macvtap') {
    const addressed = want.subnet ?? want.gateway ?? want.pool
    if (addressed !== undefined || Object.keys(reservations).length > 0)
      throw invalid(
        'a macvtap network has the addresses of its parent, and gives out none',
        'Leave out the subnet, gateway, pool and reservations',
      )
    if (want.parent === undefined)
      throw invalid('a macvtap network needs a parent', 'Name a NIC of this host with --parent')
    const spec = {
      pool: null,
      reservations: {},
      peer,
      egress,
      dhcp: false,
      parent: want.parent,
      parent_mode: want.parent_mode ?? 'bridge',
    } as const
    return { ranges: { subnet: null, gateway: null, subnet6: null }, spec }
  }
  if (want.parent !== undefined || want.parent_mode !== undefined)
    throw invalid(`a network of type ${want.type} has no parent`, 'Add --type macvtap, or leave the parent out')
  const range = want.subnet === undefined ? freeRange(want, taken) : rangeOf(want.subnet, invalid)
  refuseOverlap(want.name, range, taken, want.subnet === undefined)
  const subnet = sayRange4(range)
  const gateway = want.gateway ?? sayV4(range.first + 1)
  const at = readV4(gateway)
  const wrong = at === undefined ? 'it is no IPv4 address' : unfit({ subnet, gateway: null }, at)
  if (wrong !== undefined) throw invalid(`its gateway cannot be ${gateway}: ${wrong}`)
  const pool = want.pool ?? { start: sayV4(range.first + (at === range.first + 1 ? 2 : 1)), end: sayV4(range.last - 1) }
  checkPool({ subnet, gateway }, pool, invalid)
  checkReservations({ subnet, gateway }, reservations, invalid)
  return {
    ranges: { subnet, gateway, subnet6: prefix6Of(want, taken, invalid) },
    spec: { pool, reservations, peer, egress, dhcp, parent: null, parent_mode: null },
  }
}

type Invalid = (reason: string, hint?: string) => Error

const rangeOf = (text: string, invalid: Invalid): Range4 => {
  const range = readRange4(text)
  if (!range)
    throw invalid(`"${text}" is no range`, 'Write its first address and the length of its prefix: 10.50.0.0/24')
  if (range.length > LENGTH_MAX)
    throw invalid(`${text} has no room for a gateway and a vm`, `The longest prefix is /${LENGTH_MAX}`)
  if (range.length < LENGTH_MIN) throw invalid(`${text} is too large`, `The shortest prefix is /${LENGTH_MIN}`)
  const loopback = { first: readV4('127.0.0.0') ?? 0, last: readV4('127.255.255.255') ?? 0 }
  if (overlap(range, loopback) || range.first < 2 ** 24 || range.last >= (readV4('224.0.0.0') ?? 0))
    throw invalid(`${text} is no range for hosts`, 'Choose one of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16')
  const metadata = { first: readV4('169.254.0.0') ?? 0, last: readV4('169.254.255.255') ?? 0 }
  if (overlap(range, metadata))
    throw invalid(`${text} is link-local`, 'Choose one of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16')
  return range
}

const freeRange = (want: { readonly name: string }, taken: Taken): Range4 => {
  for (let index = 0; index < RANGES_MAX; index++) {
    const first = FIRST + index * 256
    const range = { first, last: first + 255, length: 24 }
    if (clash(range, taken) === undefined) return range
  }
  throw networkConflict({ name: want.name, reason: 'no range is free', hint: 'Name one with --subnet' })
}

/** Who has an address of a range already, in words; undefined where nobody has. */
const clash = (range: Range4, { routed, networks }: Taken): string | undefined => {
  const network = networks.find(({ subnet }) => {
    const other = subnet === null ? undefined : readRange4(subnet)
    return other !== undefined && overlap(range, other)
  })
  if (network) return `${sayRange4(range)} overlaps network "${network.name}" (${network.subnet})`
  const route = routed.find((other) => overlap(range, other))
  return route && `this host routes ${sayRange4(route)} elsewhere`
}

const refuseOverlap = (name: string, range: Range4, taken: Taken, chosen: boolean): void => {
  const reason = chosen ? undefined : clash(range, taken)
  if (reason !== undefined) throw networkConflict({ name, reason, hint: 'Choose another --subnet, or none' })
}

type Addressed = { readonly subnet: string; readonly gateway: string }

/** @throws `network_invalid` */
export const checkPool = (
  network: Addressed,
  { start, end }: { readonly start: string; readonly end: string },
  invalid: Invalid,
): void => {
  const [first, last] = [readV4(start), readV4(end)]
  for (const [text, address] of [
    [start, first],
    [end, last],
  ] as const) {
    const wrong = address === undefined ? 'it is no IPv4 address' : unfit({ ...network, gateway: null }, address)
    if (wrong !== undefined) throw invalid(`its pool cannot have ${text}: ${wrong}`)
  }
  const gateway = readV4(network.gateway) ?? 0
  if ((first ?? 0) > (last ?? 0)) throw invalid(`its pool ends at ${end}, before it begins at ${start}`)
  if (gateway >= (first ?? 0) && gateway <= (last ?? 0))
    throw invalid(
      `its pool has the gateway ${network.gateway} in it`,
      'Begin the pool behind the gateway, or move the gateway',
    )
}

/** @throws `network_invalid` */
export const checkReservations = (
  network: Addressed,
  reservations: Readonly<Record<string, string>>,
  invalid: Invalid,
): void => {
  const seen = new Map<string, string>()
  for (const [name, text] of Object.entries(reservations)) {
    const address = readV4(text)
    const wrong = address === undefined ? 'it is no IPv4 address' : unfit(network, address)
    if (wrong !== undefined) throw invalid(`"${name}" cannot have ${text}: ${wrong}`)
    const other = seen.get(text)
    if (other !== undefined) throw invalid(`${text} is reserved for "${other}" and for "${name}"`)
    seen.set(text, name)
  }
}

/** @throws `network_invalid` */
export const checkEgress = ({ policy, allow = [] }: NetworkSpec['egress'], invalid: Invalid): void => {
  if (policy !== 'allow-list' && allow.length > 0)
    throw invalid(`its egress policy is "${policy}" and has a list`, 'Use the policy "allow-list"')
  for (const { cidr, name, ports } of allow) {
    if ((cidr === undefined) === (name === undefined))
      throw invalid('an entry of its egress list needs a cidr or a name, and not both')
    if (ports !== undefined) {
      const [first = 0, last = first] = ports.split('-').map(Number)
      if (first < 1 || last > 65_535 || first > last) throw invalid(`"${ports}" is no range of ports`)
    }
    if (cidr !== undefined && !isCidr(cidr)) throw invalid(`"${cidr}" is no address or range`)
  }
}

const isCidr = (text: string): boolean => {
  const [address = '', bits] = text.split('/')
  if (text.includes(':')) return isIPv6(address) && (bits === undefined || Number(bits) <= 128)
  return readRange4(bits === undefined ? `${address}/32` : text) !== undefined
}

const prefix6Of = (
  want: { readonly name: string; readonly ipv6: string },
  { networks }: Taken,
  invalid: Invalid,
): string | null => {
  if (want.ipv6 === 'off') return null
  if (want.ipv6 === 'auto') return `${sayV6(Buffer.concat([Uint8Array.of(0xfd), randomBytes(7), Buffer.alloc(8)]))}/64`
  const prefix = readPrefix6(want.ipv6)
  if (!prefix)
    throw invalid(`"${want.ipv6}" is no prefix of 64 bits`, 'Write it as fd12:3456:789a:1::/64, or auto, or off')
  const text = `${sayV6(prefix.bytes)}/64`
  const other = networks.find(({ subnet6 }) => subnet6 === text)
  if (other) throw networkConflict({ name: want.name, reason: `network "${other.name}" has ${text}` })
  return text
}
