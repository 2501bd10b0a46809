import { existsSync, lstatSync, readFileSync } from 'node:fs'
import { isAbsolute, join } from 'node:path'
import { Type } from '@sinclair/typebox'
import { fault } from './fault.ts'

/** A Unix socket's path, its NUL included, must fit `sun_path` (108 bytes, unix(7)). */
export const SOCKET_PATH_MAX = 107

export type Environment = Readonly<Record<string, string | undefined>>

/** The two folders of a daemon and the socket that its clients use. */
export interface DaemonPaths {
  readonly mode: 'system' | 'user'
  readonly state: string
  readonly run: string
  readonly socket: string
}

export const systemPaths: DaemonPaths = {
  mode: 'system',
  state: '/var/lib/aerie',
  run: '/run/aerie',
  socket: '/run/aerie/aerie.sock',
}

export const homeMissing = fault(
  'home_missing',
  'unavailable',
  { uid: Type.Integer(), said: Type.String() },
  (d) =>
    `Cannot find the home of user ${d.uid}: HOME is ${d.said}, and the user database names no folder that is there`,
  'Set HOME or XDG_STATE_HOME to a folder of yours, or name a daemon with --host',
)

/**
 * Takes an absolute path out of a variable: what is empty or relative is not set, says the XDG base directory
 * specification.
 */
const absolute = (path: string | undefined): string | undefined =>
  path !== undefined && isAbsolute(path) ? path : undefined

/** Finds the home that the user database has for a user; undefined where it has none that is there. */
const homeInDatabase = (uid: number): string | undefined => {
  // A root that holds one file alone has no user database, and one user, to whom all of it belongs.
  if (uid === 0 && !existsSync('/etc/passwd')) return '/'
  let home: string | undefined
  try {
    home = readFileSync('/etc/passwd', 'utf8')
      .split('\n')
      .map((line) => line.split(':'))
      .find((fields) => fields[2] === String(uid))?.[5]
    // Users of other databases: getpwuid(3), which is asked where HOME says nothing.
    if (home === undefined && !process.env['HOME']) home = process.getBuiltinModule('node:os').homedir()
  } catch {
    return undefined
  }
  return home !== undefined && isAbsolute(home) && existsSync(home) ? home : undefined
}

/** Finds the home of a user: HOME, else what the user database says. @throws `home_missing` */
export const homeOf = (env: Environment, uid: number): string => {
  const home = absolute(env['HOME']) ?? homeInDatabase(uid)
  if (home !== undefined) return home
  throw homeMissing({ uid, said: env['HOME'] === undefined ? 'not set' : `"${env['HOME']}"` })
}

/** The longest path below a runtime folder: a socket of a machine (vm/row/layout.ts). */
const LONGEST_SOCKET = 'm/zzzzzzz/console.sock'

/** Tells whether every socket below this folder has a path that a `sockaddr_un` holds (unix(7)). */
export const fitsSockets = (run: string): boolean => Buffer.byteLength(join(run, LONGEST_SOCKET)) <= SOCKET_PATH_MAX

/** Tells whether a folder is not there, or belongs to this user and to nobody else. */
const usable = (folder: string, uid: number): boolean => {
  try {
    const stat = lstatSync(folder, { throwIfNoEntry: false })
    return stat === undefined || (stat.isDirectory() && stat.uid === uid && (stat.mode & 0o022) === 0)
  } catch {
    return false // something above it is no folder, or is closed to us
  }
}

/** Names that somebody else may have taken in /tmp before one is given up. */
const TRIES = 9

/**
 * Names the folder in the state of a user's own daemon where its machines have their sockets, and where it listens too,
 * wherever else it does: XDG_RUNTIME_DIR goes with the last logout and what is old in /tmp is taken away, and the vms
 * outlive both. Undefined where the path is too long for sockets.
 */
export const lastingRun = (state: string): string | undefined => {
  const run = join(state, 'run')
  return fitsSockets(run) ? run : undefined
}

const userRun = (env: Environment, uid: number, state: string): string => {
  const runtime = absolute(env['XDG_RUNTIME_DIR'])
  const own = runtime === undefined ? undefined : join(runtime, 'aerie')
  if (own !== undefined && fitsSockets(own) && usable(own, uid)) return own
  const names = Array.from({ length: TRIES }, (_, at) => `/tmp/aerie-${uid}${at === 0 ? '' : `-${at}`}`)
  return lastingRun(state) ?? names.find((name) => usable(name, uid)) ?? `/tmp/aerie-${uid}`
}

/** Lists the paths of one user's own daemon, by the XDG base directory specification. @throws `home_missing` */
export const userPaths = (env: Environment, uid: number): DaemonPaths => {
  const state = join(absolute(env['XDG_STATE_HOME']) ?? join(homeOf(env, uid), '.local/state'), 'aerie')
  const run = userRun(env, uid, state)
  return { mode: 'user', state, run, socket: join(run, 'aerie.sock') }
}

/** Names the configuration file of one user; undefined where the user has no home. */
export const userConfigFile = (env: Environment, uid: number): string | undefined => {
  const home = absolute(env['HOME']) ?? homeInDatabase(uid)
  const folder = absolute(env['XDG_CONFIG_HOME']) ?? (home === undefined ? undefined : join(home, '.config'))
  return folder === undefined ? undefined : join(folder, 'aerie/aerie.toml')
}
