import { type Element, keyOf } from '../../linux/netlink/nft.ts'
import { port } from '../../linux/netlink/nft-expression.ts'
import type { Allow } from './description.ts'
import { addressBytes, type Range, readRange } from './range.ts'
import { type Elements, protocolsOf, readPorts, SETS } from './sets.ts'

/*
 * What a name of an allow-list turned out to be. An address stays let through for as long as the answer said and some
 * time more, since a program keeps an answer longer than it should; and no answer is so short that its address is gone
 * before it was dialled.
 */

const TTL_SECONDS_MIN = 30
const TTL_SECONDS_MAX = 24 * 60 * 60
const GRACE_SECONDS = 60
/** Ports of a named line stand in the set one by one. */
export const NAMED_PORTS_MAX = 256

/**
 * Addresses that are nobody's on the internet. A public name that has one of them wants to be let into the host's own
 * networks.
 */
const PRIVATE = [
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '224.0.0.0/3',
  '::/96',
  '::ffff:0:0/96',
  '64:ff9b::/96',
  '64:ff9b:1::/48',
  'fc00::/7',
  'fe80::/10',
  'fec0::/10',
  'ff00::/8',
].map(readRange)
/** What nobody gets by a name, whatever that is: this host, its links, everybody. */
const NEVER = [
  '0.0.0.0/8',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '224.0.0.0/3',
  '::/96',
  '::ffff:0:0/96',
  'fe80::/10',
  'ff00::/8',
].map(readRange)

const inside = ({ version, first, last }: Range, ranges: readonly Range[]): boolean =>
  ranges.some((range) => range.version === version && first >= range.first && last <= range.last)

const plain = (name: string): string => name.toLowerCase().replace(/\.$/, '')

/** Whether a line of an allow-list is about a name: itself, or below `*.`. */
export const isNamedBy = (rule: Allow, name: string): boolean => {
  if (rule.name === undefined) return false
  const [wanted, asked] = [plain(rule.name), plain(name)]
  return wanted.startsWith('*.') ? asked.endsWith(wanted.slice(1)) && asked !== wanted.slice(2) : wanted === asked
}

/**
 * Whether a rule lets an address through that a name was answered with. With a `cidr` beside the name it must be in
 * that, private or not.
 */
const fits = (rule: Allow, address: Range): boolean => {
  if (inside(address, NEVER)) return false
  return rule.cidr === undefined ? !inside(address, PRIVATE) : inside(address, [readRange(rule.cidr)])
}

/** Tells how long an address that was learned stays, ms, by the TTL of its answer. */
export const timeoutMsOf = (ttlSeconds: number): number =>
  (Math.min(Math.max(ttlSeconds, TTL_SECONDS_MIN), TTL_SECONDS_MAX) + GRACE_SECONDS) * 1000

/** The protocols of a line that names none and has no ports. */
const WHOLE = { 4: [6, 17, 1], 6: [6, 17, 58] } as const

const portsOf = (rule: Allow): number[] =>
  (rule.ports ?? []).flatMap((text) => {
    const [first, last] = readPorts(text)
    return Array.from({ length: last - first + 1 }, (_, offset) => first + offset)
  })

/** @throws RangeError: more ports than a named line can have, a port or a range that is none */
export const checkNamed = (rule: Allow): void => {
  if (rule.name === undefined) return
  if (rule.cidr !== undefined) readRange(rule.cidr)
  const count = (rule.ports ?? []).reduce((sum, text) => {
    const [first, last] = readPorts(text)
    return sum + last - first + 1
  }, 0)
  if (count > NAMED_PORTS_MAX)
    throw new RangeError(
      `${rule.name}: ${count} ports; a line with a name has at most ${NAMED_PORTS_MAX}, or none for all of them`,
    )
}

/** An address that a name was answered with, and whether any line lets it through. */
export interface Learned {
  readonly address: string
  readonly elements: Elements
}

/** The elements that an answer adds for the addresses of one guest; nothing where no line fits. */
export const learnedElements = (
  sources: readonly Uint8Array[],
  allow: readonly Allow[],
  name: string,
  address: string,
  timeoutMs: number,
): Elements => {
  const range = readRange(address)
  const { version } = range
  const to = addressBytes(version, range.first)
  const rules = allow.filter((rule) => isNamedBy(rule, name) && fits(rule, range))
  const mine = sources.filter(({ length }) => length === to.length)
  return mine.flatMap(
    (source): Elements =>
      rules.flatMap((rule): Elements => {
        const ports = rule.proto === 'icmp' ? [] : portsOf(rule)
        const protocols = protocolsOf(rule, version).flatMap(([first, last]) =>
          first === last ? [first] : WHOLE[version],
        )
        const set = ports.length > 0 ? SETS.learned[version] : SETS.learnedWhole[version]
        const element = (...fields: Uint8Array[]): Element => ({ key: keyOf(set.key, fields), timeoutMs })
        const list = protocols.flatMap((protocol) => {
          const start = [source, to, Uint8Array.of(protocol)]
          return ports.length > 0 ? ports.map((number) => element(...start, port(number))) : [element(...start)]
        })
        return [[set, list]]
      }),
  )
}
