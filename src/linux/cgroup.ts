import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { CONTROLLERS, cgroupTree, type CgroupTree, type Controller, type Hierarchy } from './cgroup-tree.ts'
import { hasCode } from './errno.ts'
import { closeFd } from './fd.ts'
import { pidfdOpen, pidfdSignal, whenExited } from './pidfd.ts'

/** All groups of ours stand in one folder of this name in each tree. */
const PARENT = 'aerie'
const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$/
const SIGKILL = 9
const CPU_PERIOD_US = 100_000

/** What a group is held to; what is absent is not limited. */
export interface CgroupLimits {
  /** Memory with page cache; beyond it the kernel kills the group. */
  readonly memoryMaxBytes?: number | undefined
  /** Share of the CPU under contention: 1 to 10000, the default of every group is 100. */
  readonly cpuWeight?: number | undefined
  /** CPU time at most, in CPUs: 1.5 is 150 ms in each 100 ms. */
  readonly cpuMax?: number | undefined
  /** Processes and threads. */
  readonly pidsMax?: number | undefined
}

/** A cgroup that was made for one machine. */
export interface Cgroup {
  readonly name: string
  /** Folders to join, for `cgroups` of a launch; none where this host gives us no groups. */
  readonly folders: readonly string[]
  /** What was asked for and cannot be had: a sentence each, for the log. */
  readonly ignored: readonly string[]
}

/** The controllers that this host gives us. */
export interface CgroupSupport {
  readonly controllers: readonly Controller[]
  /** One line for people: where from, or why not. */
  readonly reason: string
}

/** Tells what this host lets us limit. Changes nothing. */
export const cgroupSupport = ({ hierarchies, missing }: CgroupTree = cgroupTree()): CgroupSupport => {
  const controllers = CONTROLLERS.filter((name) => hierarchies.some((tree) => tree.controllers.includes(name)))
  const where = hierarchies
    .filter((tree) => tree.controllers.length > 0)
    .map(({ version, base }) => `v${version} at ${base}`)
  const why = [...missing].filter(([name]) => name !== 'cpuacct').map(([name, reason]) => `${name}: ${reason}`)
  return { controllers, reason: [...new Set([...where, ...why])].join('; ') }
}

const folderOf = (tree: Hierarchy, name: string): string => {
  if (!NAME.test(name)) throw new RangeError(`"${name}" is not a name of a cgroup`)
  return join(tree.base, PARENT, name)
}

/** Writes a file of a cgroup. cgroupfs has no O_CREAT: a file that is not there is ENOENT, not a new file. */
const write = (path: string, text: string): void => {
  writeFileSync(path, text, { flag: 'r+' })
}

const read = (path: string): string | undefined => {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'ENODEV', 'EOPNOTSUPP')) return undefined // ENODEV: removed while it was open
    throw error
  }
}

/**
 * Gives the file and the text that set one limit, by version. Kernel's admin-guide: cgroup-v2.rst;
 * cgroup-v1/memory.rst, pids.rst; scheduler/sched-bwc.rst.
 */
const settings = (version: 1 | 2, limits: CgroupLimits): readonly (readonly [Controller, string, string, string])[] => {
  const { memoryMaxBytes, cpuWeight, cpuMax, pidsMax } = limits
  const list: [Controller, string, string, string][] = []
  if (memoryMaxBytes !== undefined) {
    list.push(['memory', 'memory', version === 2 ? 'memory.max' : 'memory.limit_in_bytes', String(memoryMaxBytes)])
    // A VM is one thing: half of its processes are of no use. (v1 cannot say so.)
    if (version === 2) list.push(['memory', 'memory', 'memory.oom.group', '1'])
  }
  if (cpuWeight !== undefined) {
    // v1's default is 1024 where v2's is 100, and it takes 2 to 262144.
    list.push([
      'cpu',
      'CPU weight',
      version === 2 ? 'cpu.weight' : 'cpu.shares',
      String(version === 2 ? cpuWeight : Math.max(2, Math.round(cpuWeight * 10.24))),
    ])
  }
  if (cpuMax !== undefined) {
    const quota = Math.max(1000, Math.round(cpuMax * CPU_PERIOD_US)) // the kernel takes no less than 1 ms
    if (version === 2) list.push(['cpu', 'CPU time', 'cpu.max', `${quota} ${CPU_PERIOD_US}`])
    else
      list.push(
        ['cpu', 'CPU time', 'cpu.cfs_period_us', String(CPU_PERIOD_US)],
        ['cpu', 'CPU time', 'cpu.cfs_quota_us', String(quota)],
      )
  }
  if (pidsMax !== undefined) list.push(['pids', 'processes', 'pids.max', String(pidsMax)])
  return list
}

/** Tells what a failed write says to a person. */
const why = (error: unknown): string => (error instanceof Error && 'code' in error ? String(error.code) : String(error))

/**
 * Makes the group `name` in every tree of this host and sets its limits; one that is there already gets these limits.
 * Never throws for what the host withholds: a VM without a limit is better than none, and `ignored` says what is
 * missing.
 *
 * @param name  letters, digits, `_`, `.`, `-`, at most 200
 */
export const makeCgroup = (name: string, limits: CgroupLimits, tree: CgroupTree = cgroupTree()): Cgroup => {
  const folders: string[] = []
  const ignored: string[] = []
  const wanted = new Set(settings(2, limits).map(([controller]) => controller))
  for (const [controller, reason] of tree.missing) if (wanted.has(controller)) ignored.push(`${controller}: ${reason}`)
  for (const hierarchy of tree.hierarchies) {
    const folder = folderOf(hierarchy, name)
    try {
      makeFolder(folder)
      // Not before: from here on the parent cannot be removed, and come back without its controllers.
      if (hierarchy.version === 2)
        for (const parent of [hierarchy.base, dirname(folder)]) ignored.push(...shareOut(parent, hierarchy.controllers))
    } catch (error) {
      ignored.push(`${folder}: ${why(error)}`)
      continue
    }
    folders.push(folder)
    for (const [controller, label, file, text] of settings(hierarchy.version, limits)) {
      if (!hierarchy.controllers.includes(controller)) continue
      try {
        write(join(folder, file), text)
      } catch (error) {
        ignored.push(`${label}: cannot write ${text} to ${file}: ${why(error)}`)
      }
    }
  }
  return { name, folders, ignored }
}

/**
 * Makes a folder: mkdir(2); one that is there is fine. Not `recursive`: its answer is not to be trusted where somebody
 * removes meanwhile.
 */
const ensure = (folder: string): void => {
  try {
    mkdirSync(folder)
  } catch (error) {
    if (!hasCode(error, 'EEXIST')) throw error
  }
}

/**
 * Makes the folder of one group, again where another daemon removes our common parent, empty as it is, before we are in
 * it.
 */
const makeFolder = (folder: string): void => {
  for (let tries = 1; ; tries++) {
    try {
      ensure(dirname(folder))
      ensure(folder)
      return
    } catch (error) {
      if (!hasCode(error, 'ENOENT') || tries === 20) throw error
    }
  }
}

/**
 * Lets the groups in `folder` of v2 have these controllers; one by one, since one that is refused refuses the whole
 * line.
 */
const shareOut = (folder: string, controllers: readonly Controller[]): string[] => {
  const path = join(folder, 'cgroup.subtree_control')
  const has = read(path)?.split(' ') ?? []
  return controllers
    .filter((name) => name !== 'cpuacct' && !has.includes(name))
    .flatMap((name) => {
      try {
        write(path, `+${name}`)
        return []
      } catch (error) {
        return [`${name}: cannot be shared out in ${folder}: ${why(error)}`]
      }
    })
}

/** Lists the folders of a group that are there. */
const existing = (name: string, tree: CgroupTree): { readonly hierarchy: Hierarchy; readonly folder: string }[] =>
  tree.hierarchies
    .map((hierarchy) => ({ hierarchy, folder: folderOf(hierarchy, name) }))
    .filter(({ folder }) => read(join(folder, 'cgroup.procs')) !== undefined)

/** What the processes of a cgroup take; undefined is what its controller is not there to count. */
export interface CgroupUsage {
  readonly memoryBytes: number | undefined
  /** The most there ever was; v2 counts it since Linux 5.19. */
  readonly memoryPeakBytes: number | undefined
  readonly cpuUs: number | undefined
  /** Processes and threads. */
  readonly pids: number | undefined
  /** Processes that the kernel killed for the memory limit. */
  readonly oomKills: number | undefined
}

const numberOf = (text: string | undefined): number | undefined =>
  text === undefined || !/^\d+$/.test(text) ? undefined : Number(text)
/** Reads lines of `key value`. */
const keyed = (text: string | undefined, key: string): number | undefined =>
  numberOf(
    text
      ?.split('\n')
      .find((line) => line.startsWith(`${key} `))
      ?.slice(key.length + 1),
  )

/** Tells what a group takes now; a number that this host does not count is undefined. */
export const cgroupUsage = (name: string, tree: CgroupTree = cgroupTree()): CgroupUsage => {
  const of = (controller: Controller, one: string, two: string) => {
    const at = existing(name, tree).find(({ hierarchy }) => hierarchy.controllers.includes(controller))
    return at && { text: read(join(at.folder, at.hierarchy.version === 2 ? two : one)), version: at.hierarchy.version }
  }
  const cpu = of('cpuacct', 'cpuacct.usage', 'cpu.stat')
  const nanoseconds = cpu?.version === 1 ? numberOf(cpu.text) : undefined
  const oom = of('memory', 'memory.oom_control', 'memory.events')
  return {
    memoryBytes: numberOf(of('memory', 'memory.usage_in_bytes', 'memory.current')?.text),
    memoryPeakBytes: numberOf(of('memory', 'memory.max_usage_in_bytes', 'memory.peak')?.text),
    cpuUs:
      cpu?.version === 2
        ? keyed(cpu.text, 'usage_usec')
        : nanoseconds === undefined
          ? undefined
          : Math.round(nanoseconds / 1000),
    pids: numberOf(of('pids', 'pids.current', 'pids.current')?.text),
    oomKills: keyed(oom?.text, 'oom_kill'),
  }
}

/** Lists the processes in a group, in whichever tree. */
export const cgroupPids = (name: string, tree: CgroupTree = cgroupTree()): number[] => [
  ...new Set(
    existing(name, tree).flatMap(({ folder }) =>
      (read(join(folder, 'cgroup.procs')) ?? '')
        .split('\n')
        .filter((pid) => pid !== '')
        .map(Number),
    ),
  ),
]

/**
 * Kills every process of a group, also those that are started meanwhile, and resolves when none is left.
 *
 * @throws Error where some are left at the end of `timeoutMs`: they hang in the kernel
 */
export const killCgroup = async (name: string, timeoutMs = 5000, tree: CgroupTree = cgroupTree()): Promise<void> => {
  const deadline = AbortSignal.timeout(timeoutMs)
  for (let pids = cgroupPids(name, tree); pids.length > 0; pids = cgroupPids(name, tree)) {
    if (deadline.aborted) throw new Error(`Processes of cgroup ${name} cannot be killed: ${pids.join(', ')}`)
    // At once for all, forks included, where the kernel can (v2, Linux 5.14); else one by one until the group is empty.
    for (const { folder } of existing(name, tree)) {
      try {
        write(join(folder, 'cgroup.kill'), '1')
      } catch (error) {
        if (!hasCode(error, 'ENOENT', 'EACCES', 'ENODEV')) throw error
      }
    }
    await Promise.all(pids.map((pid) => killMember(pid, () => cgroupPids(name, tree).includes(pid), deadline)))
  }
}

const killMember = async (pid: number, isMember: () => boolean, deadline: AbortSignal): Promise<void> => {
  let pidfd: number
  try {
    pidfd = pidfdOpen(pid)
  } catch (error) {
    if (hasCode(error, 'ESRCH')) return
    throw error
  }
  try {
    if (!isMember()) return // the number came to mean another process before we held it
    pidfdSignal(pidfd, SIGKILL)
    await whenExited(pidfd, deadline).catch(() => undefined)
  } finally {
    closeFd(pidfd)
  }
}

/**
 * Removes a group that is there, its processes with it. @throws as `killCgroup`; EBUSY where it does not become empty
 */
export const removeCgroup = async (name: string, timeoutMs = 5000, tree: CgroupTree = cgroupTree()): Promise<void> => {
  const until = Date.now() + timeoutMs
  await killCgroup(name, timeoutMs, tree)
  for (const { folder } of existing(name, tree)) {
    for (;;) {
      try {
        rmdirSync(folder)
        break
      } catch (error) {
        if (hasCode(error, 'ENOENT')) break
        // A process that has exited leaves its group a moment later than its parent can see.
        if (!hasCode(error, 'EBUSY') || Date.now() > until) throw error
        await Bun.sleep(5)
      }
    }
    // The last one out: EBUSY while there is another group.
    try {
      rmdirSync(dirname(folder))
    } catch {
      /* it is wanted */
    }
  }
}

/** Lists the names of all groups of ours that are there. */
export const listCgroups = (tree: CgroupTree = cgroupTree()): string[] => {
  const names = new Set<string>()
  for (const { base } of tree.hierarchies) {
    try {
      for (const entry of readdirSync(join(base, PARENT), { withFileTypes: true }))
        if (entry.isDirectory()) names.add(basename(entry.name))
    } catch (error) {
      if (!hasCode(error, 'ENOENT', 'EACCES')) throw error
    }
  }
  return [...names].sort()
}
