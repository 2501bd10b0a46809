import { existsSync, readFileSync } from 'node:fs'
import type { Config } from '../config.ts'
import type { Check } from '../contract/system.ts'
import { hasCode } from '../linux/errno.ts'
import { links, openLinks } from '../linux/netlink/links.ts'
import { Netlink, PROTOCOL } from '../linux/netlink/netlink.ts'
import { messageOf } from '../lib/thrown.ts'
import { droppingChains, type ForeignFinding, kernelFindings } from './firewall/foreign.ts'

/** The bit of CAP_NET_ADMIN, capabilities(7). */
const NET_ADMIN = 1n << 12n
/** Bridges of ours by their names, where a daemon has made some. */
const BRIDGE = /^aerie\d+$/
const TABLE = /^aerie-[0-9a-f]{8}$/

const said = (name: string, status: Check['status'], message: string, hint: string | null = null): Check => ({
  name,
  status,
  message,
  hint,
})

const mayChangeLinks = (): boolean => {
  const bits = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]
  return bits !== undefined && (BigInt(`0x${bits}`) & NET_ADMIN) !== 0n
}

/** Says whether this host can have networks, and what of it is in the way of their guests. Changes nothing. */
export const networkChecks = (config: Pick<Config, 'mode'>): Check[] => {
  if (config.mode === 'user')
    return [
      said(
        'networks',
        'ok',
        "a user's own daemon changes no links: its vms have no network card, and exec goes over vsock",
      ),
    ]
  if (!mayChangeLinks())
    return [
      said(
        'networks',
        'warn',
        'this user may not change links: vms get no network card',
        'Run the daemon as root, or with CAP_NET_ADMIN',
      ),
    ]
  if (!existsSync('/dev/net/tun'))
    return [said('networks', 'warn', 'there is no /dev/net/tun: vms get no network card', 'modprobe tun')]
  try {
    const found = findings()
    return [
      said('networks', 'ok', 'links and nf_tables can be changed'),
      ...found.map(({ sentence, lines }) =>
        said('firewall', 'warn', sentence, lines.length === 0 ? null : lines.join('; ')),
      ),
    ]
  } catch (error) {
    if (!hasCode(error, 'EPROTONOSUPPORT', 'EPERM', 'EOPNOTSUPP')) throw error
    return [
      said(
        'networks',
        'warn',
        `nf_tables cannot be used (${messageOf(error)}): vms get no network card`,
        'modprobe nf_tables',
      ),
    ]
  }
}

/** Looks for rules of others, for the bridges that there are, or for the first that there will be. */
const findings = (): ForeignFinding[] => {
  using netlink = openLinks()
  using netfilter = Netlink.open(PROTOCOL.netfilter)
  const there = links(netlink).flatMap(({ name }) => (BRIDGE.test(name) ? [name] : []))
  const bridges = there.length === 0 ? ['aerie0'] : there
  return [...droppingChains(netfilter, bridges, ({ name }) => TABLE.test(name)), ...kernelFindings(bridges)]
}
