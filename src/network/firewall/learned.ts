import type { Tuple } from '../../linux/netlink/conntrack.ts'
import { type Element, keyOf, type SetShape } from '../../linux/netlink/nft.ts'
import { port } from '../../linux/netlink/nft-expression.ts'
import type { Allow } from './description.ts'
import { addressBytes, type Range, readRange } from './range.ts'
import { type Elements, protocolsOf, readPorts, SETS } from './sets.ts'

/*
 * What a name of an allow-list turned out to be. An address stays let through for as long as the answer said and some
 * time more, since a program keeps an answer longer than it should; and no answer is so short that its address is gone
 * before it was dialled.
 */

export interface Hold {
  readonly least: number
  readonly grace: number
}

const HOLD: Hold = { least: 30, grace: 60 }
const TTL_SECONDS_MAX = 24 * 60 * 60
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

export const timeoutMsOf = (ttlSeconds: number, { least, grace }: Hold = HOLD): number =>
  (Math.min(Math.max(ttlSeconds, least), TTL_SECONDS_MAX) + grace) * 1000

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

/** An element that goes by itself. */
interface Timed {
  readonly set: SetShape
  readonly element: Element
  readonly endsAtMs: number
}

interface Answer {
  readonly name: string
  readonly address: string
  readonly endsAtMs: number
}

/** So many elements are let through for one guest at once: names below `*.` are as many as somebody outside likes. */
const LEARNED_MAX = 4096
/** Elements that are about to end by themselves cannot be told from those that have. */
const ENDING_MS = 1000

const elementKey = (set: SetShape, { key }: Element): string => `${set.name} ${Buffer.from(key).toString('latin1')}`

/** What one guest was told, for as long as that holds. */
export class Learned {
  readonly #answers = new Map<string, Answer>()
  readonly #elements = new Map<string, Timed>()
  #sweepAt = 64

  /** Those of elements that are there already, so that their time must be set anew. */
  known(elements: Elements): Elements {
    return elements.map(([set, list]) => [set, list.filter((element) => this.#elements.has(elementKey(set, element)))])
  }

  /** Whether there is room for elements. */
  hasRoom(elements: Elements, nowMs: number): boolean {
    const count = elements.reduce((sum, [, list]) => sum + list.length, 0)
    if (this.#elements.size + count > LEARNED_MAX) this.#sweep(nowMs)
    return this.#elements.size + count <= LEARNED_MAX
  }

  note(name: string, address: string, elements: Elements, nowMs: number, timeoutMs: number): void {
    const endsAtMs = nowMs + timeoutMs
    this.#answers.set(`${plain(name)} ${address}`, { name, address, endsAtMs })
    for (const [set, list] of elements)
      for (const element of list) this.#elements.set(elementKey(set, element), { set, element, endsAtMs })
    if (this.#elements.size > this.#sweepAt) {
      this.#sweep(nowMs)
      this.#sweepAt = 64 + 2 * this.#elements.size
    }
  }

  /** Takes over an element that an earlier daemon let through; nobody knows its name any more. */
  adopt(set: SetShape, key: Uint8Array, endsAtMs: number): void {
    this.#elements.set(elementKey(set, { key }), { set, element: { key }, endsAtMs })
  }

  /** The elements that are there for certain. */
  there(nowMs: number): Elements {
    return [...this.#elements.values()]
      .filter(({ endsAtMs }) => endsAtMs > nowMs + ENDING_MS)
      .map(({ set, element }) => [set, [element]] as const)
  }

  /** All elements with what is left of their time. */
  remaining(nowMs: number): Elements {
    return [...this.#elements.values()]
      .filter(({ endsAtMs }) => endsAtMs > nowMs)
      .map(({ set, element, endsAtMs }) => [set, [{ ...element, timeoutMs: endsAtMs - nowMs }]] as const)
  }

  /** The same answers for another list, or for other addresses of the guest. */
  under(sources: readonly Uint8Array[], allow: readonly Allow[], nowMs: number): Learned {
    const learned = new Learned()
    for (const { name, address, endsAtMs } of this.#answers.values()) {
      if (endsAtMs <= nowMs) continue
      const timeoutMs = endsAtMs - nowMs
      const elements = learnedElements(sources, allow, name, address, timeoutMs)
      if (elements.length > 0) learned.note(name, address, elements, nowMs, timeoutMs)
    }
    return learned
  }

  /** Whether a flow goes where a name led. */
  lets(source: Uint8Array, { destination, protocol, destinationPort }: Tuple): boolean {
    const version = destination.length === 4 ? 4 : 6
    const fields = [source, destination, Uint8Array.of(protocol), port(destinationPort)]
    const [exact, whole] = [SETS.learned[version], SETS.learnedWhole[version]]
    return (
      this.#elements.has(elementKey(exact, { key: keyOf(exact.key, fields) })) ||
      this.#elements.has(elementKey(whole, { key: keyOf(whole.key, fields.slice(0, 3)) }))
    )
  }

  #sweep(nowMs: number): void {
    for (const [key, { endsAtMs }] of this.#elements) if (endsAtMs <= nowMs) this.#elements.delete(key)
    for (const [key, { endsAtMs }] of this.#answers) if (endsAtMs <= nowMs) this.#answers.delete(key)
  }
}
