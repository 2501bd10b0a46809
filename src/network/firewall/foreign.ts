import { readFileSync } from 'node:fs'
import { hasCode } from '../../linux/errno.ts'
import { attributesOf, textOf } from '../../linux/netlink/message.ts'
import type { Netlink } from '../../linux/netlink/netlink.ts'
import { chains, FAMILY, type FoundChain, type FoundRule, rules, type Table } from '../../linux/netlink/nft.ts'

/*
 * What others on this host do to packets of guests. An `accept` of ours undoes no `drop` of theirs: a packet must pass
 * every base chain of its hook. So what drops is found, and told with the line that lets our bridges through.
 */

/** Whose rules are in the way. */
export type ForeignKind = 'docker' | 'ufw' | 'firewalld' | 'iptables' | 'nftables' | 'iptables-legacy' | 'br_netfilter'

/** `forward`: what guests send over the host; `input`: what they ask of it, DHCP and DNS. */
export type ForeignHook = 'forward' | 'input'

/** Something on this host that is in the way of guests, or may be. */
export interface ForeignFinding {
  readonly kind: ForeignKind
  readonly hook: ForeignHook | undefined
  /** The place: `ip filter FORWARD`, or a file of the kernel's. */
  readonly where: string
  readonly sentence: string
  /** The commands that heal it, in their order. */
  readonly lines: readonly string[]
}

const HOOKS: Readonly<Record<number, ForeignHook>> = { 1: 'input', 2: 'forward' }
const FAMILIES: Readonly<Record<number, string>> = { [FAMILY.inet]: 'inet', [FAMILY.ipv4]: 'ip', [FAMILY.ipv6]: 'ip6' }
const META = { iifname: 6, oifname: 7 } as const
const DROP = 0
const ACCEPT = 1
const VERDICT = 2

type FoundExpression = FoundRule['expressions'][number]

/** The code of an expression's verdict and the chain that it names; undefined where it decides nothing. */
const verdictOf = ({
  name,
  attributes,
}: FoundExpression): { readonly code: number; readonly chain: string } | undefined => {
  // What iptables brings along for nf_tables has its old names.
  const isReject = name === 'reject' || (name === 'target' && textOf(attributes.get(1) ?? Buffer.alloc(0)) === 'REJECT')
  if (isReject) return { code: DROP, chain: '' }
  const data = name === 'immediate' ? attributes.get(2) : undefined
  const inner = data && attributesOf(data).get(VERDICT)
  if (!inner) return undefined
  const parts = attributesOf(inner)
  return { code: parts.get(1)?.readInt32BE(0) ?? DROP, chain: textOf(parts.get(2) ?? Buffer.alloc(0)) }
}

/** Whether a rule drops whatever comes to it. */
const dropsAll = ({ expressions }: FoundRule): boolean => {
  const [last] = expressions.slice(-1)
  const others = expressions.slice(0, -1)
  return (
    last !== undefined &&
    verdictOf(last)?.code === DROP &&
    others.every(({ name }) => name === 'counter' || name === 'log')
  )
}

/** Whether a rule lets through what comes in by a link, or goes out by it. */
const letsThrough = ({ expressions }: FoundRule, key: keyof typeof META, link: string): boolean => {
  const at = expressions.findIndex(
    ({ name, attributes }) => name === 'meta' && attributes.get(2)?.readUInt32BE(0) === META[key],
  )
  const compared = expressions[at + 1]
  const data = compared?.name === 'cmp' ? compared.attributes.get(3) : undefined
  const value = data && attributesOf(data).get(1)
  if (at < 0 || !value || compared?.attributes.get(2)?.readUInt32BE(0) !== 0) return false
  // A `*` at the end of a name is a comparison of what stands before it.
  const isLink = value.includes(0) ? textOf(value) === link : link.startsWith(value.toString())
  const verdict = expressions.map(verdictOf).find((one) => one !== undefined)
  return isLink && (verdict?.code === ACCEPT || /_trusted$/.test(verdict?.chain ?? ''))
}

const isSame = (a: Table, b: Table): boolean => a.family === b.family && a.name === b.name

const kindOf = (chain: FoundChain, all: readonly FoundChain[]): ForeignKind => {
  if (chain.table.name === 'firewalld') return 'firewalld'
  const names = all.filter(({ table }) => isSame(table, chain.table)).map(({ name }) => name)
  if (names.some((name) => name.startsWith('ufw6-') || name.startsWith('ufw-'))) return 'ufw'
  // Docker's rules are about what is forwarded alone.
  if (names.includes('DOCKER-USER') && chain.name === 'FORWARD') return 'docker'
  return chain.table.name === 'filter' && ['FORWARD', 'INPUT'].includes(chain.name) ? 'iptables' : 'nftables'
}

/** What guests ask of the host. */
const served = (is6: boolean): readonly (readonly [proto: string, port: number])[] => [
  ['udp', is6 ? 547 : 67],
  ['udp', 53],
  ['tcp', 53],
]

const iptablesLines = (tool: string, chain: string, hook: ForeignHook, bridge: string): string[] => {
  if (hook === 'forward')
    return [`${tool} -I ${chain} -i ${bridge} -j ACCEPT`, `${tool} -I ${chain} -o ${bridge} -j ACCEPT`]
  const is6 = tool.startsWith('ip6')
  return [
    ...served(is6).map(([proto, port]) => `${tool} -I ${chain} -i ${bridge} -p ${proto} --dport ${port} -j ACCEPT`),
    ...(is6 ? [`${tool} -I ${chain} -i ${bridge} -p ipv6-icmp -j ACCEPT`] : []),
  ]
}

const linesFor = (kind: ForeignKind, hook: ForeignHook, chain: FoundChain, bridge: string): string[] => {
  const is6 = chain.table.family === FAMILY.ipv6
  const tool = is6 ? 'ip6tables' : 'iptables'
  const where = `${FAMILIES[chain.table.family]} ${chain.table.name} ${chain.name}`
  switch (kind) {
    case 'docker':
      return iptablesLines(tool, 'DOCKER-USER', hook, bridge)
    case 'ufw':
      return hook === 'forward'
        ? [`ufw route allow in on ${bridge}`, `ufw route allow out on ${bridge}`]
        : served(is6).map(([proto, port]) => `ufw allow in on ${bridge} to any port ${port} proto ${proto}`)
    case 'firewalld':
      return [`firewall-cmd --permanent --zone=trusted --add-interface=${bridge}`, 'firewall-cmd --reload']
    case 'iptables':
      return iptablesLines(tool, chain.name, hook, bridge)
    default:
      return hook === 'forward'
        ? [`nft insert rule ${where} iifname ${bridge} accept`, `nft insert rule ${where} oifname ${bridge} accept`]
        : [
            `nft insert rule ${where} iifname ${bridge} meta l4proto '{ tcp, udp }' th dport '{ 53, 67, 547 }' accept`,
            `nft insert rule ${where} iifname ${bridge} meta l4proto '{ icmp, ipv6-icmp }' accept`,
          ]
  }
}

/** Whether rules of the same table let a bridge through before the drop of a base chain. */
const isHealed = (kind: ForeignKind, hook: ForeignHook, own: readonly FoundRule[], bridge: string): boolean => {
  const inHook = own.filter(({ chain }) =>
    hook === 'input' ? /input|_in_/i.test(chain) : /forward|fwd|docker-user/i.test(chain),
  )
  const lets = (key: keyof typeof META): boolean => inHook.some((rule) => letsThrough(rule, key, bridge))
  // A zone of firewalld is where packets come from; what goes back belongs to flows that are there.
  return lets('iifname') && (hook === 'input' || kind === 'firewalld' || lets('oifname'))
}

const reasonOf = (chain: FoundChain, own: readonly FoundRule[]): string | undefined => {
  if (chain.policy === 'drop') return 'has the policy drop'
  const [last] = own.filter((rule) => rule.chain === chain.name).slice(-1)
  return last && dropsAll(last) ? 'ends with a rule that drops everything' : undefined
}

/**
 * Looks for base chains of others that drop what guests of bridges send; each is told for every bridge that it is in
 * the way of.
 *
 * @param isOurs whether a table is one of this program's, of any of its daemons
 */
export const droppingChains = (
  netlink: Netlink,
  bridges: readonly string[],
  isOurs: (table: Table) => boolean,
): ForeignFinding[] => {
  const allChains = chains(netlink)
  const allRules = rules(netlink)
  return allChains.flatMap((chain): ForeignFinding[] => {
    const hook = chain.hook === undefined ? undefined : HOOKS[chain.hook]
    const family = FAMILIES[chain.table.family]
    if (!hook || family === undefined || isOurs(chain.table)) return []
    const own = allRules.filter(({ table }) => isSame(table, chain.table))
    const reason = reasonOf(chain, own)
    if (reason === undefined) return []
    const kind = kindOf(chain, allChains)
    const where = `${family} ${chain.table.name} ${chain.name}`
    const effect = (bridge: string): string =>
      hook === 'forward'
        ? `guests of ${bridge} do not get out, and nobody gets to them`
        : `guests of ${bridge} get no address by DHCP and no answer from the resolver`
    return bridges
      .filter((bridge) => !isHealed(kind, hook, own, bridge))
      .map((bridge) => ({
        kind,
        hook,
        where,
        sentence: `The chain ${where} ${reason}: ${effect(bridge)}`,
        lines: linesFor(kind, hook, chain, bridge),
      }))
  })
}

const readProc = (path: string): string | undefined => {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'EACCES')) return undefined
    throw error
  }
}

const LEGACY = [
  ['/proc/net/ip_tables_names', 'iptables-legacy'],
  ['/proc/net/ip6_tables_names', 'ip6tables-legacy'],
] as const
const BRIDGE_CALLS = ['bridge-nf-call-iptables', 'bridge-nf-call-ip6tables'] as const

const legacyFindings = (bridges: readonly string[]): ForeignFinding[] =>
  LEGACY.filter(([path]) => readProc(path)?.split('\n').includes('filter')).map(([path, tool]) => ({
    kind: 'iptables-legacy',
    hook: 'forward',
    where: path,
    sentence: `${tool} has rules beside those of nf_tables, and both may drop; "${tool} -S" shows them`,
    lines: bridges.flatMap((bridge) => iptablesLines(tool, 'FORWARD', 'forward', bridge)),
  }))

const bridgeFindings = (): ForeignFinding[] =>
  BRIDGE_CALLS.filter((name) => readProc(`/proc/sys/net/bridge/${name}`) === '1').map((name) => ({
    kind: 'br_netfilter',
    hook: undefined,
    where: `/proc/sys/net/bridge/${name}`,
    sentence:
      'Frames between guests of one bridge pass the rules for routed packets: a drop there cuts guests off from one ' +
      'another, and a guest does not reach its own published ports. Kubernetes wants it so; elsewhere it can be off',
    lines: [`sysctl -w net.bridge.${name}=0`],
  }))

/**
 * Looks for what is not in nf_tables: rules of the old iptables, and bridges whose frames pass the rules of routers.
 */
export const kernelFindings = (bridges: readonly string[]): ForeignFinding[] => [
  ...legacyFindings(bridges),
  ...bridgeFindings(),
]
