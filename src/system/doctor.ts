import {
  accessSync,
  constants,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { Config } from '../config.ts'
import { readConfig } from '../config.ts'
import type { Check, Doctor } from '../contract/system.ts'
import type { DriverChecks } from '../hypervisor/hypervisors.ts'
import { sayBytes } from '../lib/bytes.ts'
import { Fault } from '../lib/fault.ts'
import { homeMissing, type Environment } from '../lib/paths.ts'
import { networkChecks } from '../network/network-checks.ts'
import { kvmSupport } from '../linux/kvm.ts'
import { cgroupSupport } from '../linux/cgroup.ts'
import { reflinkSupport } from '../linux/clone-file.ts'

const check = (name: string, status: Check['status'], message: string, hint: string | null = null): Check => ({
  name,
  status,
  message,
  hint,
})

/** Checks KVM. Its absence is a warning: TCG runs the same guests, slower. */
const kvm = (): Check => {
  const { usable, reason, fix } = kvmSupport()
  return usable
    ? check('kvm', 'ok', reason)
    : check('kvm', 'warn', `${reason}: guests run under TCG, some ten times slower`, fix ?? null)
}

const kernel = (): Check => {
  const release = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim()
  const [major = 0, minor = 0] = release.split('.').map(Number)
  return major > 5 || (major === 5 && minor >= 10)
    ? check('linux', 'ok', `Linux ${release}`)
    : check('linux', 'fail', `Linux ${release} is older than 5.10`, 'Run a newer kernel')
}

/** Finds the nearest folder that exists: the state folder itself may come with the first start. */
const nearest = (path: string): string => (existsSync(path) ? path : nearest(dirname(path)))
const SPACE_WARN = 5 * 2 ** 30

const disk = (config: Config): Check => {
  const folder = nearest(config.state)
  const at = statfsSync(folder)
  const free = at.bavail * at.bsize
  return free >= SPACE_WARN
    ? check('disk', 'ok', `${sayBytes(free)} free for ${config.state}`)
    : check(
        'disk',
        free < 2 ** 30 ? 'fail' : 'warn',
        `${sayBytes(free)} free for ${config.state}`,
        'Free some space, or choose another folder with --state',
      )
}

const writable = (config: Config): Check => {
  const folder = nearest(config.state)
  try {
    accessSync(folder, constants.W_OK | constants.X_OK)
    return check('state', 'ok', `${config.state} can be written`)
  } catch {
    return check(
      'state',
      'warn',
      `${config.state} cannot be written by this user`,
      config.mode === 'system'
        ? 'Run as root for the system daemon; `aerie run` starts one of your own without it'
        : `Make ${folder} writable, or name another folder with XDG_STATE_HOME`,
    )
  }
}

const reflink = (config: Config): Check => {
  let folder: string
  try {
    folder = mkdtempSync(join(nearest(config.state), '.doctor-'))
  } catch {
    folder = mkdtempSync(join(tmpdir(), 'aerie-doctor-'))
  }
  try {
    writeFileSync(join(folder, 'a'), Buffer.alloc(65_536, 1))
    return reflinkSupport(join(folder, 'a'), join(folder, 'b'))
      ? check('reflink', 'ok', "the state folder's file system clones files")
      : check(
          'reflink',
          'warn',
          "the state folder's file system does not clone files: disks are copied block by block",
          'XFS and Btrfs do',
        )
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

const cgroups = (): Check => {
  const { controllers, reason } = cgroupSupport()
  const wanted = ['memory', 'cpu', 'pids'] as const
  const missing = wanted.filter((name) => !controllers.includes(name))
  return missing.length === 0
    ? check('cgroups', 'ok', `${wanted.join(', ')} can limit a vm (${reason})`)
    : check(
        'cgroups',
        'warn',
        `${missing.join(', ')} cannot limit a vm: ${reason}`,
        'Run as root, or under systemd with `Delegate=yes`',
      )
}

const port = async (config: Config): Promise<Check[]> => {
  if (config.listen === '') return []
  const at = config.listen.lastIndexOf(':')
  try {
    const probe = Bun.listen({
      hostname: config.listen.slice(0, at),
      port: Number(config.listen.slice(at + 1)),
      socket: { data: () => undefined },
    })
    probe.stop(true)
    return [check('port', 'ok', `${config.listen} is free`)]
  } catch {
    const ours = await fetch(`http://${config.listen}/healthz`).then(
      (answer) => answer.ok,
      () => false,
    )
    return [
      ours
        ? check('port', 'ok', `${config.listen} is served`)
        : check('port', 'fail', `${config.listen} is taken`, 'Choose another address with --listen'),
    ]
  }
}

/**
 * Reads the configuration of the daemon that would serve this user: the host's where it answers or was asked for, else
 * the user's own. A fault where the user has no home.
 */
export const configOf = (which: 'system' | 'user', env: Environment, uid: number): Config | Fault => {
  try {
    return readConfig(which === 'user' ? { user: true } : {}, env, uid)
  } catch (error) {
    if (error instanceof Fault && error.code === homeMissing.code) return error
    throw error
  }
}

/** Examines what this host can do, with the fix of what it cannot. Needs no root and no daemon, and changes nothing. */
export const doctor = async (drivers: DriverChecks, asked: Config | Fault): Promise<Doctor> => {
  const config = asked instanceof Fault ? readConfig({}, {}, process.getuid?.() ?? 0) : asked
  const folderChecks =
    asked instanceof Fault
      ? [check('state', 'fail', asked.message, asked.hint ?? null)]
      : [writable(asked), disk(asked), reflink(asked)]
  const checks = [
    kernel(),
    kvm(),
    ...(await drivers(config)),
    cgroups(),
    ...networkChecks(config),
    ...folderChecks,
    ...(await port(config)),
  ]
  return { healthy: checks.every((one) => one.status !== 'fail'), checks }
}

/** How long an answer of `doctor` serves, ms: its checks write files and start programs, and any token may ask. */
const FRESH_MS = 10_000

/** Makes `doctor` for a daemon: whoever asks while it looks, or soon after, has the same answer. */
export const cachedDoctor = (drivers: DriverChecks, config: Config): (() => Promise<Doctor>) => {
  let last: { readonly at: number; readonly answer: Promise<Doctor> } | undefined
  return () => {
    if (last === undefined || performance.now() - last.at > FRESH_MS) {
      last = { at: performance.now(), answer: doctor(drivers, config) }
      last.answer.catch(() => {
        last = undefined
      })
    }
    return last.answer
  }
}
