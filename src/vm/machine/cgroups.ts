import type { Host } from '../../host.ts'
import { listCgroups, makeCgroup, removeCgroup } from '../../linux/cgroup.ts'
import { hasCode } from '../../linux/errno.ts'
import type { VmRow } from '../../store/schema.ts'

/** What a VMM and its helpers may take beside the guest's memory: QEMU's own, its cache of translated code, page cache of the disks. */
const OVERHEAD_MIB = 512
/** CPU time beside the guest's own: emulated devices and their threads. */
const DEVICE_CPUS = 1
/** Of a VMM: a thread a vCPU, a pool for disks, the rest. A guest cannot make more of them than this. */
const THREADS_MAX = 512

const nameOf = (host: Host, uid: string): string => `${host.stateId}-${uid}`

/** The groups that every process of a vm joins. What this host withholds is said once in the log; a vm without a limit is better than none. */
export const makeCgroups = (host: Host, row: VmRow): readonly string[] => {
  if (host.hypervisors.get(row.hypervisor)?.unlimited || !host.config.jail) return []
  const { folders, ignored } = makeCgroup(nameOf(host, row.uid), {
    memoryMaxBytes: (row.memoryMb + OVERHEAD_MIB) * 2 ** 20,
    cpuWeight: Math.min(10_000, row.cpuCores * 100),
    cpuMax: row.cpuCores + DEVICE_CPUS,
    pidsMax: THREADS_MAX,
  })
  if (ignored.length > 0) host.log.debug({ vm: row.name, ignored }, 'some limits cannot be had on this host')
  return folders
}

/** Removes the groups of one vm; of every vm of this state folder but those in `keep` where none is named. */
export const removeCgroups = async (
  host: Host,
  row: VmRow | undefined,
  keep: ReadonlySet<string> = new Set(),
): Promise<void> => {
  if (row && host.hypervisors.get(row.hypervisor)?.unlimited) return
  const own = `${host.stateId}-`
  const names = row
    ? [nameOf(host, row.uid)]
    : listCgroups().filter((name) => name.startsWith(own) && !keep.has(name.slice(own.length)))
  for (const name of names) {
    try {
      await removeCgroup(name)
    } catch (error) {
      if (!hasCode(error, 'EACCES', 'EPERM', 'EROFS'))
        host.log.warn(
          { cgroup: name, reason: error instanceof Error ? error.message : String(error) },
          'cannot remove a cgroup',
        )
    }
  }
}
