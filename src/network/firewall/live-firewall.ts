import { hasCode } from '../../linux/errno.ts'
import { links, openLinks } from '../../linux/netlink/links.ts'
import type { Message } from '../../linux/netlink/message.ts'
import { Netlink, NetlinkError, PROTOCOL } from '../../linux/netlink/netlink.ts'
import {
  counterNamed,
  type Element,
  type SetShape,
  TABLE_OWNED,
  TABLE_PERSISTS,
  type Table,
} from '../../linux/netlink/nft.ts'
import type { Description, Egress, FirewallNetwork, FirewallNic, Published } from './description.ts'
import { counterName, DROP_KINDS, type Drops, guard, guardTable, reguard, unguard } from './guard.ts'
import { checkNamed, learnedElements, timeoutMsOf } from './learned.ts'
import { bytesOf } from './range.ts'
import { added, rebuild, removed, rulesTable } from './rules.ts'
import { egressOf, type Elements, nicElements, publishedElements } from './sets.ts'

/** The place of a firewall. */
export interface FirewallOptions {
  /** Name of the table, of its own for every daemon of a host. */
  readonly table: string
  /** Descriptor of the network namespace that it stands in. */
  readonly netns?: number | undefined
}

/** An element that goes by itself, as long as it is there. */
interface Timed {
  readonly set: SetShape
  readonly element: Element
  readonly endsAtMs: number
}

const NO_DROPS = { packets: 0, bytes: 0 } as const
/** Elements that are about to end by themselves cannot be told from those that have. */
const ENDING_MS = 1000

const publishedKey = ({ proto, address, port }: Published): string => `${proto} ${address} ${port}`
const elementKey = (set: SetShape, { key }: Element): string => `${set.name} ${Buffer.from(key).toString('latin1')}`

/**
 * The firewall of a network namespace: its table, and the one socket that owns that. Every change is one batch, made
 * when the method returns, or refused whole. What was asked for is kept here, so that a table which somebody else took
 * away is made again with the next change.
 */
export class Firewall implements Disposable {
  readonly #netlink: Netlink
  readonly #options: FirewallOptions
  readonly #rules: Table
  readonly #guards: Table
  #flags = TABLE_OWNED | TABLE_PERSISTS
  #networks = new Map<string, FirewallNetwork>()
  #nics = new Map<string, FirewallNic>()
  #published = new Map<string, Published>()
  /** What was learned, by the link whose guest asked, then by set and key. */
  readonly #learned = new Map<string, Map<string, Timed>>()

  private constructor(netlink: Netlink, options: FirewallOptions) {
    this.#netlink = netlink
    this.#options = options
    this.#rules = rulesTable(options.table)
    this.#guards = guardTable(options.table)
  }

  /**
   * Makes the table, or makes it anew where an earlier daemon left it.
   *
   * @throws NetlinkError: EPERM: no right to, or another process owns the table; EPROTONOSUPPORT: no nf_tables here.
   * RangeError: the description holds what is no address, no port, no name of a link
   */
  static open(options: FirewallOptions, description: Description): Firewall {
    const firewall = new Firewall(Netlink.open(PROTOCOL.netfilter, options.netns), options)
    try {
      firewall.rebuild(description)
      return firewall
    } catch (error) {
      firewall[Symbol.dispose]()
      throw error
    }
  }

  /** Lets go of the table; where the kernel can, it stays and does its work. */
  [Symbol.dispose](): void {
    this.#netlink[Symbol.dispose]()
  }

  /** Whether others are kept from changing the table. */
  get isOwned(): boolean {
    return this.#flags !== 0
  }

  get description(): Description {
    return {
      networks: [...this.#networks.values()],
      nics: [...this.#nics.values()],
      published: [...this.#published.values()],
    }
  }

  /**
   * Makes everything anew, from another description or from the one that is known, in one batch: at no moment there is
   * no table.
   */
  rebuild(description: Description = this.description): void {
    for (const { egress } of [...description.networks, ...description.nics]) check(egress)
    const nics = new Map(description.nics.map((nic) => [nic.link, nic]))
    const drops = new Map([...nics.keys()].map((link) => [link, this.counters(link)]))
    const learned = [...this.#learned].flatMap(([link, timed]) => (nics.has(link) ? [...timed.values()] : []))
    this.#commitWhole(description, { learned: remaining(learned), drops })
    this.#networks = new Map(description.networks.map((network) => [network.name, network]))
    this.#nics = nics
    this.#published = new Map(description.published.map((one) => [publishedKey(one), one]))
    for (const link of this.#learned.keys()) if (!nics.has(link)) this.#learned.delete(link)
  }

  /** Makes or changes a network: by everything anew, since its rules are among all the others. */
  setNetwork(network: FirewallNetwork): void {
    const { networks, ...rest } = this.description
    this.rebuild({ ...rest, networks: [...networks.filter(({ name }) => name !== network.name), network] })
  }

  removeNetwork(name: string): void {
    const { networks, ...rest } = this.description
    this.rebuild({ ...rest, networks: networks.filter((network) => network.name !== name) })
  }

  /** Guards a port of a bridge and lets its guest go where it may; of one that is known what is new is taken over. */
  attach(nic: FirewallNic): void {
    check(nic.egress)
    const known = this.#nics.get(nic.link)
    const elements = this.#elementsOf(nic)
    this.#change(
      'attach a port',
      known
        ? [...removed(this.#rules, this.#elementsOf(known)), ...reguard(this.#guards, nic)]
        : guard(this.#guards, nic),
      added(this.#rules, elements),
      { nics: [...this.#nics.values()].filter(({ link }) => link !== nic.link).concat(nic) },
    )
    this.#nics.set(nic.link, nic)
  }

  /** Forgets a port of a bridge; nothing where it is not known. */
  detach(link: string): void {
    const nic = this.#nics.get(link)
    if (!nic) return
    this.#change(
      'detach a port',
      [...removed(this.#rules, [...this.#elementsOf(nic), ...this.#learnedOf(link)]), ...unguard(this.#guards, link)],
      [],
      { nics: [...this.#nics.values()].filter((one) => one.link !== link) },
    )
    this.#nics.delete(link)
    this.#learned.delete(link)
  }

  /** Changes what the guest of a port may reach; null: what its network's may. */
  setEgress(link: string, egress: Egress | null): void {
    check(egress)
    const nic = this.#nics.get(link)
    if (!nic) throw new RangeError(`no such port: ${link}`)
    const changed = { ...nic, egress }
    this.#change(
      'change what a guest may reach',
      removed(this.#rules, [...this.#elementsOf(nic), ...this.#learnedOf(link)]),
      added(this.#rules, this.#elementsOf(changed)),
      { nics: [...this.#nics.values()].map((one) => (one.link === link ? changed : one)) },
    )
    this.#nics.set(link, changed)
    this.#learned.delete(link)
  }

  /** @throws NetlinkError: EEXIST: one of them is published already */
  publish(published: readonly Published[]): void {
    this.#change('publish ports', [], added(this.#rules, published.flatMap(publishedElements)), {
      published: [...this.#published.values(), ...published],
    })
    for (const one of published) this.#published.set(publishedKey(one), one)
  }

  /** Takes published ports back; those that are not known are no matter. */
  unpublish(published: readonly Published[]): void {
    const keys = new Set(published.map(publishedKey))
    const known = [...this.#published].filter(([key]) => keys.has(key)).map(([, one]) => one)
    this.#change('take published ports back', removed(this.#rules, known.flatMap(publishedElements)), [], {
      published: [...this.#published].filter(([key]) => !keys.has(key)).map(([, one]) => one),
    })
    for (const key of keys) this.#published.delete(key)
  }

  /**
   * Lets a guest through to the addresses that a name of its allow-list was answered with. When this returns they are
   * let through, and the answer may leave.
   *
   * @returns those that are let through; an answer is to hold no others
   */
  learn(link: string, name: string, addresses: readonly string[], ttlSeconds: number): string[] {
    const nic = this.#nics.get(link)
    const egress = nic && egressOf(nic, this.#networks.get(nic.network))
    if (!nic || !egress || egress.policy === 'none') return []
    if (egress.policy === 'all') return [...addresses]
    const timeoutMs = timeoutMsOf(ttlSeconds)
    const sources = nic.addresses.map(bytesOf)
    const found = addresses.map((address) => ({
      address,
      elements: learnedElements(sources, egress.allow, name, address, timeoutMs),
    }))
    const elements = found.flatMap((one) => one.elements)
    const timed = this.#learned.get(link) ?? new Map<string, Timed>()
    const now = Date.now()
    for (const [key, { endsAtMs }] of timed) if (endsAtMs <= now) timed.delete(key)
    const again = elements.map(
      ([set, list]) => [set, list.filter((element) => timed.has(elementKey(set, element)))] as const,
    )
    // The time of an element that is there is not changed by adding it: it is taken away and added, once it is there
    // for certain.
    this.#change(
      'let a name through',
      [...added(this.#rules, again), ...removed(this.#rules, again)],
      added(this.#rules, elements),
      {},
    )
    for (const [set, list] of elements)
      for (const element of list) timed.set(elementKey(set, element), { set, element, endsAtMs: now + timeoutMs })
    this.#learned.set(link, timed)
    return found.filter((one) => one.elements.some(([, list]) => list.length > 0)).map(({ address }) => address)
  }

  /** Says what a port was kept from sending. */
  counters(link: string): Drops {
    return Object.fromEntries(
      DROP_KINDS.map((kind) => [kind, counterNamed(this.#netlink, this.#guards, counterName(link, kind)) ?? NO_DROPS]),
    ) as unknown as Drops
  }

  #elementsOf(nic: FirewallNic): Elements {
    return nicElements(nic, this.#networks.get(nic.network))
  }

  #learnedOf(link: string): Elements {
    const now = Date.now()
    return [...(this.#learned.get(link)?.values() ?? [])]
      .filter(({ endsAtMs }) => endsAtMs > now + ENDING_MS)
      .map(({ set, element }) => [set, [element]] as const)
  }

  /** Makes a change; where the kernel does not have what it should, everything, as it will be. */
  #change(doing: string, first: Message[], second: Message[], becomes: Partial<Description>): void {
    try {
      this.#netlink.commit(doing, [...first, ...second])
    } catch (error) {
      if (!hasCode(error, 'ENOENT')) throw error
      this.rebuild({ ...this.description, ...becomes })
      const only = second.length > 0 && Object.keys(becomes).length === 0
      if (only) this.#netlink.commit(doing, second)
    }
  }

  #commitWhole(description: Description, carried: Parameters<typeof rebuild>[3]): void {
    const commit = (what: Description): void =>
      this.#netlink.commit('make the table', rebuild(this.#options.table, what, this.#flags, carried))
    try {
      commit(description)
    } catch (error) {
      if (hasCode(error, 'EOPNOTSUPP') && this.#flags !== 0) {
        this.#flags = 0
        this.#commitWhole(description, carried)
        return
      }
      // Before Linux 6.16 or so a port is guarded only where it is there.
      if (!(error instanceof NetlinkError) || !hasCode(error, 'ENOENT')) throw error
      const there = this.#present()
      const nics = description.nics.filter(({ link }) => there.has(link))
      if (nics.length === description.nics.length) throw error
      commit({ ...description, nics })
    }
  }

  #present(): ReadonlySet<string> {
    using netlink = openLinks(this.#options.netns)
    return new Set(links(netlink).map(({ name }) => name))
  }
}

const check = (egress: Egress | null | undefined): void => {
  for (const rule of egress?.allow ?? []) checkNamed(rule)
}

/** What is left of the time of each; those whose time is over are left out. */
const remaining = (timed: readonly Timed[]): Elements => {
  const now = Date.now()
  return timed
    .filter(({ endsAtMs }) => endsAtMs > now)
    .map(({ set, element, endsAtMs }) => [set, [{ ...element, timeoutMs: endsAtMs - now }]] as const)
}
