import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { hasCode } from './errno.ts'
import { cgroupsOf } from './proc.ts'

/*
 * Where groups can be made on this host
 *
 * Three shapes are common: one v2 tree with all controllers; one v1 tree a controller; and both, where the v2 tree has
 * what v1 left over (often nothing that limits a VM). So every controller is looked for by itself, first among the v1
 * mounts: a controller that v1 has is never in v2 (cgroups(7)).
 *
 * Our groups stand at the top of what this user may write, not inside the daemon's own group: a service manager empties
 * that one, a limit of the daemon is not meant for the VMs, and v2 forbids processes beside groups that share out
 * controllers ("no internal processes").
 */

/** What limits a VM, and what v1 counts CPU time with. */
export const CONTROLLERS = ['memory', 'cpu', 'cpuacct', 'pids'] as const
export type Controller = (typeof CONTROLLERS)[number]

/** A tree in which groups can be made, below `base`. Version 2 has one, version 1 one for each set of controllers. */
export interface Hierarchy {
  readonly version: 1 | 2
  /** The topmost folder of the tree, on our own group's way, that this user may write. */
  readonly base: string
  readonly controllers: readonly Controller[]
}

/** The folders in which this process can make cgroups, by controller. */
export interface CgroupTree {
  readonly hierarchies: readonly Hierarchy[]
  /** Why a controller of `CONTROLLERS` is in none of them. */
  readonly missing: ReadonlyMap<Controller, string>
}

interface Mount {
  readonly root: string
  readonly point: string
  readonly kind: string
  readonly options: readonly string[]
}

/**
 * Reads the mounts of proc_pid_mountinfo(5), `id parent major:minor root point options [optional…] - type source
 * options`, where spaces are `\040`.
 */
const parseMounts = (mountinfo: string): Mount[] =>
  mountinfo.split('\n').flatMap((line) => {
    const [before = '', after = ''] = line.split(' - ')
    const [, , , root, point] = before.split(' ')
    const [kind, , options = ''] = after.split(' ')
    if (root === undefined || point === undefined || kind === undefined || !kind.startsWith('cgroup')) return []
    const unescaped = (text: string) =>
      text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
    return [{ root: unescaped(root), point: unescaped(point), kind, options: options.split(',') }]
  })

const writable = (path: string): boolean => {
  try {
    accessSync(path, constants.W_OK)
    return true
  } catch (error) {
    if (hasCode(error, 'EACCES', 'EPERM', 'EROFS', 'ENOENT')) return false
    throw error
  }
}

/**
 * Finds the first folder, from the mount down to our own group, in which this user may make groups and put processes.
 */
const topmostWritable = (mount: Mount, own: string): string | undefined => {
  // A mount may show a part of the tree only, and our group may lie outside of it (`/..`): then its top is all there is
  // to try.
  const below =
    own.startsWith(mount.root) && !own.startsWith('/..') ? own.slice(mount.root === '/' ? 0 : mount.root.length) : ''
  let path = mount.point
  for (const part of ['', ...below.split('/').filter((name) => name !== '')]) {
    path = join(path, part)
    if (writable(path) && writable(join(path, 'cgroup.procs'))) return path
  }
  return undefined
}

const words = (path: string): string[] => {
  try {
    return readFileSync(path, 'utf8').trim().split(/\s+/)
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'EACCES', 'EOPNOTSUPP')) return []
    throw error
  }
}

/**
 * Tells why groups below `base` do not get this controller of v2, now or as soon as we ask for it; undefined where they
 * do not.
 */
const withheld = (base: string, controller: Controller): string | undefined => {
  if (!words(join(base, 'cgroup.controllers')).includes(controller)) return 'cgroup v2 has not been given it here'
  const control = join(base, 'cgroup.subtree_control')
  if (words(control).includes(controller)) return undefined
  if (!writable(control)) return 'this user may not share it out'
  const top = !existsSync(join(base, 'cgroup.type')) // the root of the whole tree is exempt from the rule below
  const occupied = !top && words(join(base, 'cgroup.procs')).some((pid) => pid !== '')
  return occupied ? `processes stand in ${base} itself` : undefined
}

const readMounts = () => readFileSync('/proc/self/mountinfo', 'utf8')

/** Finds the trees of this host. Changes nothing. */
export const cgroupTree = (
  mountinfo: string = readMounts(),
  own = cgroupsOf(process.pid) ?? new Map<string, string>(),
): CgroupTree => {
  const mounts = parseMounts(mountinfo)
  const hierarchies: Hierarchy[] = []
  const missing = new Map<Controller, string>()
  for (const mount of mounts.filter(({ kind }) => kind === 'cgroup')) {
    const controllers = CONTROLLERS.filter(
      (name) => mount.options.includes(name) && !hierarchies.some((other) => other.controllers.includes(name)),
    )
    const [first] = controllers
    if (first === undefined) continue
    const base = topmostWritable(mount, own.get(first) ?? '/')
    if (base !== undefined) hierarchies.push({ version: 1, base, controllers })
    else for (const name of controllers) missing.set(name, `${mount.point} is not writable for this user`)
  }
  const left = CONTROLLERS.filter(
    (name) => !missing.has(name) && !hierarchies.some((other) => other.controllers.includes(name)),
  )
  const unified = mounts.find(({ kind }) => kind === 'cgroup2')
  const base = unified && topmostWritable(unified, own.get('') ?? '/')
  if (base !== undefined) {
    // v2 counts CPU time in every group, and has no cpuacct.
    const reasons = new Map(left.map((name) => [name, name === 'cpuacct' ? undefined : withheld(base, name)]))
    hierarchies.push({ version: 2, base, controllers: left.filter((name) => reasons.get(name) === undefined) })
    for (const [name, reason] of reasons) if (reason !== undefined) missing.set(name, reason)
  } else {
    for (const name of left)
      missing.set(
        name,
        unified ? `${unified.point} is not writable for this user` : 'the kernel has no cgroup file system mounted',
      )
  }
  return { hierarchies, missing }
}
