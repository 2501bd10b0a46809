import type { Egress } from '../contract/network.ts'
import type { Flag } from './flags.ts'

/** Reads what a workload may reach: `all`, `none`, or entries of an allow-list behind commas. */
export const readEgress = (said: string): Egress => {
  if (said === 'all' || said === 'none') return { policy: said }
  return { policy: 'allow-list', allow: said.split(',').map(readAllowed) }
}

/** Reads `HOST[:PORTS][/tcp|udp]`, where HOST is a name, an address or a range. */
const readAllowed = (entry: string): NonNullable<Egress['allow']>[number] => {
  const [, host = '', ports, protocol] =
    /^(\[[^\]]+\](?:\/\d+)?|[^:]+?)(?::(\d+(?:-\d+)?))?(?:\/(tcp|udp))?$/.exec(entry) ?? []
  const bare = host.replace(/^\[([^\]]+)\]/, '$1')
  if (bare === '')
    throw new RangeError(`"${entry}" is no host: write NAME, ADDRESS or RANGE, then :PORT and /tcp or /udp`)
  const isAddress = /^[\d.]+(\/\d+)?$/.test(bare) || bare.includes(':')
  return {
    ...(isAddress ? { cidr: bare } : { name: bare }),
    ...(ports !== undefined && { ports }),
    ...(protocol !== undefined && { protocol: protocol as 'tcp' }),
  }
}

/** The flag of what may be reached. */
export const EGRESS: Flag<Egress> = {
  kind: 'one',
  placeholder: 'all|none|HOST[:PORT],…',
  help: 'What may be reached outside: all, none, or a list of names, addresses and ranges (all)',
  read: readEgress,
}
