import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { hasCode } from '../../linux/errno.ts'
import { links, routes } from '../../linux/netlink/links.ts'
import type { Netlink } from '../../linux/netlink/netlink.ts'

/*
 * Forwarding, for the links that need it alone: a host with a bridge is no router between all its other links. The
 * kernel asks the link that a packet came in by, so it is the bridge and the links that answers come in by.
 */

const SETTINGS = '/proc/sys/net'
const MAIN_TABLE = 254

/** One setting of the kernel's that was changed; `path` is below `/proc/sys/net`. */
export interface ChangedSetting {
  readonly path: string
  readonly was: string
  readonly is: string
}

const read = (path: string): string | undefined => {
  try {
    return readFileSync(join(SETTINGS, path), 'utf8').trim()
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'ENOTDIR', 'EINVAL')) return undefined
    throw error
  }
}

/** Sets what is not set yet; nothing where the kernel has no such setting. @throws EROFS, EPERM, EACCES */
const set = (path: string, is: string): ChangedSetting[] => {
  const was = read(path)
  if (was === undefined || was === is) return []
  writeFileSync(join(SETTINGS, path), is)
  return [{ path, was, is }]
}

/** Names the links that lead to everywhere: those of the default routes, of IPv4 and of IPv6. */
export const uplinks = (netlink: Netlink): { readonly v4: readonly string[]; readonly v6: readonly string[] } => {
  const names = new Map(links(netlink).map(({ index, name }) => [index, name]))
  const defaults = routes(netlink).filter(({ prefix, table }) => prefix === 0 && table === MAIN_TABLE)
  const of = (family: 4 | 6): string[] => [
    ...new Set(
      defaults.flatMap((route) => {
        const name = route.family === family && route.link !== undefined ? names.get(route.link) : undefined
        return name === undefined || name === 'lo' ? [] : [name]
      }),
    ),
  ]
  return { v4: of(4), v6: of(6) }
}

/** The links that are to forward. */
export interface Forwarded {
  readonly bridges: readonly string[]
  /** Bridges whose guests have IPv6, too. */
  readonly bridges6: readonly string[]
  readonly uplinks: { readonly v4: readonly string[]; readonly v6: readonly string[] }
}

/**
 * Lets bridges and uplinks forward, as far as they do not yet. The kernel's settings are those of the namespace that
 * this process is in.
 *
 * @returns what was changed, for `undoForwarding`: to be kept together with what earlier calls returned
 * @throws EROFS, EPERM, EACCES: nothing was changed
 */
export const forward = ({ bridges, bridges6, uplinks: { v4, v6 } }: Forwarded): ChangedSetting[] => {
  const changed: ChangedSetting[] = []
  try {
    for (const link of [...bridges, ...v4]) changed.push(...set(`ipv4/conf/${link}/forwarding`, '1'))
    // A bridge hears no routers: its guests are none.
    for (const link of bridges6) changed.push(...set(`ipv6/conf/${link}/accept_ra`, '0'))
    for (const [path, is] of forwarding6(bridges6, v6)) changed.push(...set(path, is))
    return changed
  } catch (error) {
    undoForwarding(changed)
    throw error
  }
}

const forwarding6 = (bridges: readonly string[], uplinks: readonly string[]): (readonly [string, string])[] => {
  if (bridges.length === 0 || read('ipv6/conf/all/forwarding') === '1') return []
  if (existsSync(join(SETTINGS, 'ipv6/conf/all/force_forwarding')))
    return [...bridges, ...uplinks].map((link) => [`ipv6/conf/${link}/force_forwarding`, '1'] as const)
  // Before Linux 6.17 it is all links or none, and a link that forwards hears no routers unless it is told to.
  const hearing = uplinks.map((link) => `ipv6/conf/${link}/accept_ra`).filter((path) => read(path) === '1')
  return [...hearing.map((path) => [path, '2'] as const), ['ipv6/conf/all/forwarding', '1']]
}

/** Puts settings back, the last first; those that somebody changed since are his. */
export const undoForwarding = (changed: readonly ChangedSetting[]): void => {
  for (const { path, was, is } of changed.toReversed()) if (read(path) === is) writeFileSync(join(SETTINGS, path), was)
}
