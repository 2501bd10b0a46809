import { closeSync, openSync } from 'node:fs'
import { and, eq, isNull, sql } from 'drizzle-orm'
import type { NetworkAttach } from '../contract/network.ts'
import { hasCode } from '../linux/errno.ts'
import { linkByName, newAddress, newRoute, openLinks, setLink } from '../linux/netlink/links.ts'
import { isNamespace } from '../linux/netns.ts'
import { type LeaseRow, leases, vms } from '../store/schema.ts'
import type { Store } from '../store/store.ts'
import { bytesV4, readV4, readV6 } from './address.ts'
import { attachmentExists, attachmentNotFound, networkInvalid } from './errors.ts'
import { allocate, vethNames } from './leases.ts'
import { type Bridged, gateway6Of, lengthOf } from './network-row.ts'

const LOOPBACK = 'lo'

/** Opens the network namespace of a path or of a process. @throws `network_invalid`: it is none */
export const openNetns = (network: Bridged, where: string): number => {
  const path = /^[1-9]\d*$/.test(where) ? `/proc/${where}/ns/net` : where
  const invalid = (reason: string, cause?: unknown) =>
    networkInvalid(
      { name: network.name, reason: `"${where}" ${reason}`, hint: 'Name a path as /run/netns/NAME, or a pid' },
      cause,
    )
  if (!path.startsWith('/')) throw invalid('is no absolute path and no pid')
  let fd: number
  try {
    // Looked at before it is opened: opening a pipe or a device of somebody else does things.
    if (!isNamespace(path)) throw invalid('is no network namespace')
    fd = openSync(path, 'r')
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'ENOTDIR', 'ESRCH')) throw invalid('is not there', error)
    throw error
  }
  try {
    openLinks(fd)[Symbol.dispose]()
    return fd
  } catch (error) {
    closeSync(fd)
    if (hasCode(error, 'EINVAL')) throw invalid('is a namespace of another kind', error)
    throw error
  }
}

/**
 * Gives a container its lease; call it in a transaction.
 *
 * @throws `attachment_exists`, `network_exhausted`, `network_address_taken`
 */
export const leaseContainer = (tx: Store, network: Bridged, { container, ip_address }: NetworkAttach): LeaseRow => {
  const known = tx
    .select({ kind: leases.kind })
    .from(leases)
    .where(and(eq(leases.networkUid, network.uid), eq(leases.name, container), isNull(leases.releasedAt)))
    .get()
  const vm = known ?? tx.select({ kind: sql<'vm'>`'vm'` }).from(vms).where(eq(vms.name, container)).get()
  if (vm) throw attachmentExists({ name: container, network: network.name, kind: vm.kind })
  return allocate(tx, network, {
    kind: 'container',
    name: container,
    vmUid: null,
    nic: 0,
    mode: 'bridged',
    link: vethNames(network.uid, container).host,
    address: ip_address,
  })
}

/** Finds the lease of a container. @throws `attachment_not_found` */
export const findContainer = (store: Store, network: Bridged, container: string): LeaseRow => {
  const found = store
    .select()
    .from(leases)
    .where(
      and(
        eq(leases.networkUid, network.uid),
        eq(leases.kind, 'container'),
        eq(leases.name, container),
        isNull(leases.releasedAt),
      ),
    )
    .get()
  if (!found) throw attachmentNotFound({ name: container, network: network.name })
  return found
}

/** Sets up the container's end in its namespace: its addresses, the loopback, and a way out where the network has one. */
export const setUpInside = (network: Bridged, lease: LeaseRow, name: string, netns: number): void => {
  using netlink = openLinks(netns)
  const link = linkByName(netlink, name)
  if (!link) throw new Error(`the link ${name} has gone`)
  const loopback = linkByName(netlink, LOOPBACK)
  const six = lease.address6 === null ? undefined : readV6(lease.address6)
  const length = lengthOf(network)
  netlink.apply('set up a container', [
    ...(loopback ? [setLink(loopback.index, { up: true })] : []),
    setLink(link.index, { up: true }),
    ...(lease.address === null || length === undefined ? [] : [newAddress(link.index, bytesV4(lease.address), length)]),
    ...(six ? [newAddress(link.index, six, 64)] : []),
  ])
  if (network.type === 'isolated') return
  const gateway = network.gateway === null ? undefined : readV4(network.gateway)
  const gateway6 = six ? readV6(gateway6Of(network) ?? '') : undefined
  netlink.apply('set the routes of a container', [
    ...(gateway === undefined ? [] : [newRoute(bytesV4(0), 0, { gateway: bytesV4(gateway), link: link.index })]),
    ...(gateway6 ? [newRoute(Buffer.alloc(16), 0, { gateway: gateway6, link: link.index })] : []),
  ])
}
