import { hasCode } from '../../linux/errno.ts'
import { flowsFrom, forgetFlows, type Tuple } from '../../linux/netlink/conntrack.ts'
import { links, openLinks } from '../../linux/netlink/links.ts'
import type { Message } from '../../linux/netlink/message.ts'
import { Netlink, NetlinkError, PROTOCOL } from '../../linux/netlink/netlink.ts'
import {
  elements,
  type FoundElement,
  devicesOf,
  TABLE_OWNED,
  TABLE_PERSISTS,
  type Table,
} from '../../linux/netlink/nft.ts'
import type { Description, Egress, FirewallNetwork, FirewallNic, Published } from './description.ts'
import { allDrops, type Drops, dropsOf, guard, guardAgain, guardTable, limitAgain, reguard, unguard } from './guard.ts'
import { checkNamed, type Hold, Learned, learnedElements, timeoutMsOf } from './learned.ts'
import { Lists, listLets } from './lists.ts'
import { bytesOf } from './range.ts'
import { added, type Carried, nicAdded, nicRemoved, rebuild, removed, removeTables, rulesTable } from './rules.ts'
import { egressOf, publishedElements, SETS } from './sets.ts'
import { Watch } from './watch.ts'

/** The place of a firewall. */
export interface FirewallOptions {
  /** Name of the table, of its own for every daemon of a host. */
  readonly table: string
  /** Descriptor of the network namespace that it stands in. */
  readonly netns?: number | undefined
  /** False: the kernel is not asked to keep others from changing the table, and what they change is made good. */
  readonly isOwned?: boolean
  /** How long an answer of the resolver holds: no shorter than `least`, and `grace` longer than it says. Seconds. */
  readonly hold?: Hold
  /** Called when somebody else changed the table and it was made anew; with the error where it could not be. */
  readonly onForeignChange?: (failed?: unknown) => void
}

/** What names a published port. */
export type PublishedPlace = Pick<Published, 'proto' | 'address' | 'port'>

const publishedKey = ({ proto, address, port }: PublishedPlace): string => `${proto} ${address} ${port}`

const ENOENT = 2
const NOBODY: Description = { networks: [], nics: [], published: [] }

/**
 * The firewall of a network namespace: its table, and the one socket that owns that. Every change is one batch, made
 * when the method returns, or refused whole. What was asked for is kept here, so that a table which somebody else took
 * away is made again.
 */
export class Firewall implements Disposable {
  readonly #netlink: Netlink
  readonly #options: FirewallOptions
  readonly #rules: Table
  readonly #guards: Table
  #flags: number
  #watch: Watch | undefined
  #networks = new Map<string, FirewallNetwork>()
  #nics = new Map<string, FirewallNic>()
  #published = new Map<string, Published>()
  #lists = new Lists()
  /** What was learned, by the link whose guest asked. */
  #learned = new Map<string, Learned>()
  /** Settles when no flow is left that was to end. */
  #cutting: Promise<void> = Promise.resolve()

  private constructor(netlink: Netlink, options: FirewallOptions) {
    this.#netlink = netlink
    this.#options = options
    this.#rules = rulesTable(options.table)
    this.#guards = guardTable(options.table)
    this.#flags = options.isOwned === false ? 0 : TABLE_OWNED | TABLE_PERSISTS
  }

  /**
   * Makes the table, or makes it anew where an earlier daemon left it.
   *
   * @throws NetlinkError: EPERM: no right to, or another process owns the table; EPROTONOSUPPORT: no nf_tables here.
   * RangeError: the description holds what is no address, no port, no name of a link
   */
  static open(options: FirewallOptions, description: Description = NOBODY): Firewall {
    const firewall = new Firewall(Netlink.open(PROTOCOL.netfilter, options.netns), options)
    try {
      firewall.#adopt(description)
      firewall.rebuild(description)
      if (!firewall.isOwned) firewall.#startWatch()
      return firewall
    } catch (error) {
      firewall[Symbol.dispose]()
      throw error
    }
  }

  /** Lets go of the table, which stays and does its work. */
  [Symbol.dispose](): void {
    this.#watch?.[Symbol.dispose]()
    this.#netlink[Symbol.dispose]()
  }

  /** Takes the table away: for a daemon that leaves its host for good. */
  remove(): void {
    this.#watch?.[Symbol.dispose]()
    this.#watch = undefined
    this.#netlink.commit('remove the table', removeTables(this.#options.table))
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
   * no table. What was learned and counted is carried over.
   */
  rebuild(description: Description = this.description): void {
    for (const { egress } of [...description.networks, ...description.nics]) check(egress)
    const networks = new Map(description.networks.map((network) => [network.name, network]))
    const nics = new Map(description.nics.map((nic) => [nic.link, nic]))
    const now = Date.now()
    const learned = new Map<string, Learned>()
    for (const [link, known] of this.#learned) {
      const nic = nics.get(link)
      const was = this.#nics.get(link)
      const egress = nic && egressOf(nic, networks.get(nic.network))
      if (!nic || !egress) continue
      const isSame =
        !was || (isSameGuard(was, nic) && isSameEgress(egress, egressOf(was, this.#networks.get(was.network))))
      learned.set(link, isSame ? known : known.under(nic.addresses.map(bytesOf), namedIn(egress), now))
    }
    const lists = this.#commitWhole(description, {
      learned: [...learned.values()].flatMap((one) => one.remaining(now)),
      drops: allDrops(this.#netlink, this.#guards),
    })
    const narrowed = this.#narrowed(networks, nics)
    this.#networks = networks
    this.#nics = nics
    this.#published = new Map(description.published.map((one) => [publishedKey(one), one]))
    this.#learned = learned
    this.#lists = lists
    this.#cutLater(narrowed)
  }

  /** Takes over what an earlier daemon let guests through to by name: their programs go on with it. */
  #adopt({ networks, nics }: Description): void {
    const byName = new Map(networks.map((network) => [network.name, network]))
    const listed = nics.filter((nic) => egressOf(nic, byName.get(nic.network)).policy === 'allow-list')
    const now = Date.now()
    for (const version of [4, 6] as const)
      for (const set of [SETS.learned[version], SETS.learnedWhole[version]])
        for (const { key, expiresMs } of this.#elementsLeft(set.name)) {
          const source = key.subarray(0, version === 4 ? 4 : 16)
          const nic = listed.find(({ addresses }) => addresses.some((address) => source.equals(bytesOf(address))))
          if (!nic || expiresMs === undefined) continue
          const learned = this.#learned.get(nic.link) ?? new Learned()
          learned.adopt(set, key, now + expiresMs)
          this.#learned.set(nic.link, learned)
        }
  }

  #elementsLeft(set: string): readonly FoundElement[] {
    try {
      return elements(this.#netlink, this.#rules, set)
    } catch (error) {
      if (hasCode(error, 'ENOENT')) return []
      throw error
    }
  }

  /** Makes or changes a network: by everything anew, since its rules are among all the others. */
  setNetwork(network: FirewallNetwork): void {
    if (Bun.deepEquals(this.#networks.get(network.name), network)) return
    const { networks, ...rest } = this.description
    this.rebuild({ ...rest, networks: [...networks.filter(({ name }) => name !== network.name), network] })
  }

  removeNetwork(name: string): void {
    const { networks, ...rest } = this.description
    this.rebuild({ ...rest, networks: networks.filter((network) => network.name !== name) })
  }

  /**
   * Guards a port of a bridge and lets its guest go where it may; of one that is known what is new is taken over. Where
   * the kernel guards only what is there (before Linux 6.16 or so), the link is made before this, comes up after it,
   * and is attached again when it was made anew.
   *
   * @throws NetlinkError: ENOENT: this kernel wants the link to be there
   */
  attach(nic: FirewallNic): void {
    check(nic.egress)
    const known = this.#nics.get(nic.link)
    if (known) this.#replace(known, nic)
    else {
      const lists = new Lists(this.#lists)
      const messages = nicAdded(this.#rules, nic, this.#networks.get(nic.network), lists)
      this.#change('attach a port', [...guard(this.#guards, [nic]), ...messages], lists, () => ({
        nics: [...this.#nics.values(), nic],
      }))
      this.#nics.set(nic.link, nic)
      if (this.#isGuarded(nic.link)) return
      this.detach(nic.link)
      throw new NetlinkError(ENOENT, 'guard a port', 0, `there is no link ${nic.link}`)
    }
  }

  /** Forgets a port of a bridge; nothing where it is not known. */
  detach(link: string): void {
    const nic = this.#nics.get(link)
    if (!nic) return
    const lists = new Lists(this.#lists)
    const learned = removed(this.#rules, this.#learned.get(link)?.there(Date.now()) ?? [])
    const guards = unguard(this.#guards, nic, this.#guardedLinks(link) !== undefined)
    const messages = [...this.#removed(nic, lists), ...learned, ...guards]
    this.#change('detach a port', messages, lists, () => ({
      nics: [...this.#nics.values()].filter((one) => one.link !== link),
    }))
    this.#nics.delete(link)
    this.#learned.delete(link)
  }

  /**
   * Changes what the guest of a port may reach; null: what its network's may. Flows that are no longer allowed end, by
   * `settled`; those to names that it still may reach go on.
   */
  setEgress(link: string, egress: Egress | null): void {
    check(egress)
    const nic = this.#nics.get(link)
    if (!nic) throw new RangeError(`no such port: ${link}`)
    this.#replace(nic, { ...nic, egress })
  }

  /** @throws NetlinkError: EEXIST: one of them is published already */
  publish(published: readonly Published[]): void {
    this.#change('publish ports', added(this.#rules, published.flatMap(publishedElements)), this.#lists, () => ({
      published: [...this.#published.values(), ...published],
    }))
    for (const one of published) this.#published.set(publishedKey(one), one)
  }

  /** Takes published ports back; those that are not known are no matter. Connections that are open stay so. */
  unpublish(published: readonly PublishedPlace[]): void {
    const keys = new Set(published.map(publishedKey))
    const known = [...keys].flatMap((key) => this.#published.get(key) ?? [])
    const elements = known.flatMap(publishedElements)
    this.#change('take published ports back', removed(this.#rules, elements), this.#lists, () => ({
      published: [...this.#published].filter(([key]) => !keys.has(key)).map(([, one]) => one),
    }))
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
    const timeoutMs = timeoutMsOf(ttlSeconds, this.#options.hold)
    const now = Date.now()
    const sources = nic.addresses.map(bytesOf)
    const learned = this.#learned.get(link) ?? new Learned()
    const found = addresses
      .map((address) => ({ address, elements: learnedElements(sources, egress.allow, name, address, timeoutMs) }))
      .filter(({ elements }) => elements.length > 0)
    const wanted = found.flatMap((one) => one.elements)
    if (wanted.length === 0 || !learned.hasRoom(wanted, now)) return []
    // The time of an element that is there is not changed by adding it: it is taken away and added, once it is there
    // for certain.
    const again = learned.known(wanted)
    const messages = [...added(this.#rules, again), ...removed(this.#rules, again), ...added(this.#rules, wanted)]
    if (!this.#change('let a name through', messages, this.#lists, () => ({})))
      this.#netlink.commit('let a name through', added(this.#rules, wanted))
    for (const one of found) learned.note(name, one.address, one.elements, now, timeoutMs)
    this.#learned.set(link, learned)
    return found.map(({ address }) => address)
  }

  /** Says what a port was kept from sending; undefined where it is not known. */
  counters(link: string): Drops | undefined {
    return dropsOf(this.#netlink, this.#guards, link)
  }

  /**
   * Resolves when the flows that earlier changes forbade have ended. @throws NetlinkError: the kernel did not say which
   * there are
   */
  async settled(): Promise<void> {
    await this.#cutting
  }

  /** Ends all flows from and to addresses, which somebody else is about to have. */
  async forget(addresses: readonly string[]): Promise<void> {
    const bytes = addresses.map(bytesOf)
    await this.#aside(async (netlink) => {
      for (const way of ['original', 'reply'] as const) forgetFlows(netlink, await flowsFrom(netlink, bytes, way))
    })
  }

  #replace(known: FirewallNic, nic: FirewallNic): void {
    const network = this.#networks.get(nic.network)
    const lists = new Lists(this.#lists)
    const now = Date.now()
    const learned = this.#learned.get(nic.link) ?? new Learned()
    const still = learned.under(nic.addresses.map(bytesOf), namedIn(egressOf(nic, network)), now)
    const old = [...this.#removed(known, lists), ...removed(this.#rules, learned.there(now))]
    const fresh = [...nicAdded(this.#rules, nic, network, lists), ...added(this.#rules, still.remaining(now))]
    const guards = [
      ...(isSameGuard(known, nic) ? [] : reguard(this.#guards, known, nic)),
      ...this.#guardedAgain(nic, known.upload === nic.upload),
    ]
    this.#change('change a port', [...old, ...fresh, ...guards], lists, () => ({
      nics: [...this.#nics.values()].map((one) => (one.link === nic.link ? nic : one)),
    }))
    const narrowed = this.#narrowed(this.#networks, new Map([[nic.link, nic]]))
    this.#nics.set(nic.link, nic)
    this.#learned.set(nic.link, still)
    this.#cutLater(narrowed)
  }

  #guardedLinks(link: string): string[] | undefined {
    return devicesOf(this.#netlink, this.#guards, link)
  }

  #isGuarded(link: string): boolean {
    return this.#guardedLinks(link)?.includes(link) === true
  }

  /** Guards a link that was made anew, where the kernel let its guard go with the one before. */
  #guardedAgain(nic: FirewallNic, isSameRate: boolean): Message[] {
    const links = this.#guardedLinks(nic.link)
    if (!links?.includes(nic.link)) return guardAgain(this.#guards, nic, links !== undefined)
    return isSameRate ? [] : limitAgain(this.#guards, nic)
  }

  #removed(nic: FirewallNic, lists: Lists): Message[] {
    return nicRemoved(this.#rules, nic, this.#networks.get(nic.network), lists)
  }

  /** Ports whose guests may reach something else than before, all not being what they may. */
  #narrowed(networks: ReadonlyMap<string, FirewallNetwork>, nics: ReadonlyMap<string, FirewallNic>): FirewallNic[] {
    return [...nics.values()].filter((nic) => {
      const known = this.#nics.get(nic.link)
      if (!known) return false
      const egress = egressOf(nic, networks.get(nic.network))
      const was = egressOf(known, this.#networks.get(known.network))
      return egress.policy !== 'all' && !isSameEgress(egress, was)
    })
  }

  /** Ends the flows that guests began and may no longer have. */
  #cutLater(nics: readonly FirewallNic[]): void {
    if (nics.length === 0) return
    const byAddress = new Map(
      nics.flatMap((nic) => nic.addresses.map((address) => [Buffer.from(bytesOf(address)).toString('hex'), nic])),
    )
    const addresses = [...byAddress.keys()].map((hex) => Buffer.from(hex, 'hex'))
    const cut = this.#aside(async (netlink) => {
      const flows = await flowsFrom(netlink, addresses, 'original')
      forgetFlows(
        netlink,
        flows.filter(({ original }) => !this.#lets(byAddress.get(original.source.toString('hex')), original)),
      )
    })
    cut.catch(() => undefined) // whoever wants to know asks `settled`
  }

  /** Whether a guest may have a flow, as things are now. */
  #lets(was: FirewallNic | undefined, flow: Tuple): boolean {
    const nic = was && this.#nics.get(was.link)
    const egress = nic && egressOf(nic, this.#networks.get(nic.network))
    if (!nic || !egress || egress.policy === 'none') return false
    if (egress.policy === 'all') return true
    return listLets(egress.allow, flow) || this.#learned.get(nic.link)?.lets(flow.source, flow) === true
  }

  /** Does what takes its time with a socket of its own, one after the other. */
  #aside(work: (netlink: Netlink) => Promise<void>): Promise<void> {
    const done = this.#cutting
      .catch(() => undefined)
      .then(async () => {
        using netlink = Netlink.open(PROTOCOL.netfilter, this.#options.netns)
        await work(netlink)
      })
    this.#cutting = done
    return done
  }

  /**
   * Makes a change; where the kernel does not have what it should, everything is made anew, as it will be.
   *
   * @returns whether it was made by itself
   */
  #change(doing: string, messages: Message[], lists: Lists, becomes: () => Partial<Description>): boolean {
    try {
      this.#netlink.commit(doing, messages)
      this.#lists = lists
      return true
    } catch (error) {
      if (!hasCode(error, 'ENOENT')) throw error
      this.rebuild({ ...this.description, ...becomes() })
      return false
    }
  }

  #commitWhole(description: Description, carried: Carried): Lists {
    const commit = (there?: ReadonlySet<string>): Lists => {
      const lists = new Lists()
      const messages = rebuild(this.#options.table, description, this.#flags, lists, { ...carried, there })
      this.#netlink.commit('make the table', messages)
      return lists
    }
    try {
      return commit()
    } catch (error) {
      if (hasCode(error, 'EOPNOTSUPP', 'EINVAL') && this.#flags !== 0) {
        this.#flags = 0
        return this.#commitWhole(description, carried)
      }
      // Before Linux 6.16 or so a port is guarded only where it is there.
      if (!hasCode(error, 'ENOENT')) throw error
      const there = this.#present()
      if (description.nics.every(({ link }) => there.has(link))) throw error
      return commit(there)
    }
  }

  #present(): ReadonlySet<string> {
    using netlink = openLinks(this.#options.netns)
    return new Set(links(netlink).map(({ name }) => name))
  }

  #startWatch(): void {
    const { table, netns, onForeignChange } = this.#options
    this.#watch = Watch.open({ table, netns, except: this.#netlink }, () => {
      try {
        this.rebuild()
        onForeignChange?.()
      } catch (error) {
        onForeignChange?.(error)
      }
    })
  }
}

const check = (egress: Egress | null | undefined): void => {
  for (const rule of egress?.allow ?? []) checkNamed(rule)
}

const isSameEgress = (a: Egress, b: Egress): boolean => JSON.stringify(a) === JSON.stringify(b)

const namedIn = ({ policy, allow }: Egress): Egress['allow'] => (policy === 'allow-list' ? allow : [])

const isSameGuard = (a: FirewallNic, b: FirewallNic): boolean =>
  a.mac === b.mac && a.dhcp === b.dhcp && a.addresses.join() === b.addresses.join()
