import type { Host } from '../../host.ts'
import { listCgroups, makeCgroup, removeCgroup } from '../../linux/cgroup.ts'
import { hasCode } from '../../linux/errno.ts'
import type { VmRow } from '../../store/schema.ts'
import { messageOf } from '../../lib/thrown.ts'
import type { Part } from './part.ts'

/**
 * What a VMM and its helpers may take beside the guest's memory: QEMU's own, its cache of translated code, page cache
 * of the disks.
 */
export const MEMORY_OVERHEAD_MIB = 512
/** CPU time beside the guest's own: emulated devices and their threads. */
const DEVICE_CPUS = 1
/** A VMM may have this many threads: one a vCPU, a pool for disks, the rest. A guest cannot make more of them. */
const THREADS_MAX = 512

/** Names a vm's group. */
export const cgroupOf = (host: Pick<Host, 'daemon'>, uid: string): string => `${host.daemon.stateId}-${uid}`

/**
 * Makes the groups that every process of a vm joins. What this host withholds is said once in the log; a vm without a
 * limit is better than none.
 */
const makeCgroups = (host: Pick<Host, 'config' | 'log' | 'daemon' | 'hypervisors'>, row: VmRow): readonly string[] => {
  if (host.hypervisors.get(row.hypervisor)?.unlimited || !host.config.jail) return []
  const { folders, ignored } = makeCgroup(cgroupOf(host, row.uid), {
    memoryMaxBytes: (row.memoryMb + MEMORY_OVERHEAD_MIB) * 2 ** 20,
    cpuWeight: Math.min(10_000, row.cpuCores * 100),
    cpuMax: row.cpuCores + DEVICE_CPUS,
    pidsMax: THREADS_MAX,
  })
  if (ignored.length > 0) host.log.debug({ vm: row.name, ignored }, 'some limits cannot be had on this host')
  return folders
}

/** Removes a group; what this host does not let us remove is nothing that we made. */
const remove = async (host: Pick<Host, 'log'>, name: string): Promise<void> => {
  try {
    await removeCgroup(name)
  } catch (error) {
    if (!hasCode(error, 'EACCES', 'EPERM', 'EROFS'))
      host.log.warn({ cgroup: name, reason: messageOf(error) }, 'cannot remove a cgroup')
  }
}

/** Brings the limits of a vm. */
export const cgroups: Part = {
  name: 'cgroups',
  make: (host, row) => ({ cgroups: makeCgroups(host, row) }),
  unmake: async (host, row) => {
    if (!host.hypervisors.get(row.hypervisor)?.unlimited) await remove(host, cgroupOf(host, row.uid))
  },
}

/** Removes the groups of every vm of this state folder but those in `keep`. */
export const sweepCgroups = async (host: Pick<Host, 'log' | 'daemon'>, keep: ReadonlySet<string>): Promise<void> => {
  const own = `${host.daemon.stateId}-`
  for (const name of listCgroups())
    if (name.startsWith(own) && !keep.has(name.slice(own.length))) await remove(host, name)
}
