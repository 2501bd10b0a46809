import { readFileSync } from 'node:fs'
import { hasCode } from './errno.ts'

const read = (path: string): string => readFileSync(path, 'utf8')

/** Reads a file of a process; undefined where the process is gone (ESRCH: between open and read). */
const readOf = (pid: number, file: string): string | undefined => {
  try {
    return read(`/proc/${pid}/${file}`)
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'ESRCH')) return undefined
    throw error
  }
}

/** What /proc/PID/stat says of a process (proc_pid_stat(5)). */
export interface ProcessStat {
  /** `Z`: ended, and its parent has not waited for it (proc_pid_stat(5), field 3). */
  readonly state: string
  readonly parent: number
  readonly session: number
  /** Field 22: clock ticks after boot. With pid and boot id it names one process for ever. */
  readonly startTime: string
}

/** Tells what the kernel says of a process; undefined where there is none. */
export const processStat = (pid: number): ProcessStat | undefined => {
  const text = readOf(pid, 'stat')
  if (text === undefined) return undefined
  // Field 2 is the name, in brackets, and may hold anything, brackets and spaces too: count from the last one.
  const [state, parent, , session, ...rest] = text.slice(text.lastIndexOf(')') + 2).split(' ')
  const startTime = rest[15]
  if (state === undefined || startTime === undefined) throw new Error(`Cannot understand /proc/${pid}/stat`)
  return { state, parent: Number(parent), session: Number(session), startTime }
}

/** Reads field 22 of /proc/PID/stat, clock ticks after boot; undefined where there is no such process. */
export const startTimeOf = (pid: number): string | undefined => processStat(pid)?.startTime

/** Reads the id of this boot of this kernel: random(4). */
export const bootId = (): string => read('/proc/sys/kernel/random/boot_id').trim()

/**
 * Reads the flags of the first CPU, e.g. `vmx`, `svm`; empty on a machine that lists none (arm64 calls them features).
 */
export const cpuFlags = (cpuinfo: string = read('/proc/cpuinfo')): ReadonlySet<string> =>
  new Set(/^(?:flags|Features)\s*:\s*(.*)$/m.exec(cpuinfo)?.[1]?.split(' ') ?? [])

/** The memory of this host. */
export interface Memory {
  readonly totalBytes: number
  /** What programs can still take without swapping: proc_meminfo(5), MemAvailable. */
  readonly availableBytes: number
}

/** Reads /proc/meminfo (proc_meminfo(5)). */
export const memory = (meminfo: string = read('/proc/meminfo')): Memory => {
  const bytes = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(meminfo)?.[1] ?? 0) * 1024
  return { totalBytes: bytes('MemTotal'), availableBytes: bytes('MemAvailable') }
}

/** Counts the resident bytes of a process (statm, field 2); undefined where there is none. */
export const residentBytes = (pid: number): number | undefined => {
  const pages = readOf(pid, 'statm')?.split(' ')[1]
  return pages === undefined ? undefined : Number(pages) * 4096
}

/**
 * Reads the cgroups of a process, by controller; the key of the v2 tree is the empty string (cgroups(7)). The paths are
 * as the process's own cgroup namespace shows them. Undefined where there is no such process.
 */
export const cgroupsOf = (pid: number): ReadonlyMap<string, string> | undefined => {
  const text = readOf(pid, 'cgroup')
  if (text === undefined) return undefined
  return new Map(
    text
      .split('\n')
      .filter((line) => line !== '')
      .flatMap((line) => {
        const [, controllers = '', ...path] = line.split(':') // a path may hold colons
        return controllers.split(',').map((controller) => [controller, path.join(':')] as const)
      }),
  )
}

/**
 * Reads one variable of the environment that a process was started with; undefined where it has none, is gone, or
 * belongs to another user.
 */
export const environmentOf = (pid: number, name: string): string | undefined => {
  try {
    return readOf(pid, 'environ')
      ?.split('\0')
      .find((entry) => entry.startsWith(`${name}=`))
      ?.slice(name.length + 1)
  } catch (error) {
    if (hasCode(error, 'EACCES', 'EPERM')) return undefined
    throw error
  }
}
