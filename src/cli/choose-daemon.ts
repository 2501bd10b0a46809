import { closeSync, existsSync, lstatSync, mkdirSync, openSync, readFileSync, renameSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { Type } from '@sinclair/typebox'
import { parseEndpoint, type Endpoint } from '../client/endpoint.ts'
import { fault } from '../lib/fault.ts'
import { lastingRun, type Environment, type DaemonPaths } from '../lib/paths.ts'
import { sleep } from '../lib/promise.ts'
import { messageOf } from '../lib/thrown.ts'
import type { Need } from './command.ts'

export const daemonMissing = fault(
  'daemon_missing',
  'unavailable',
  { system: Type.String(), user: Type.String() },
  (d) => `Cannot find a daemon: none answers at ${d.system} or ${d.user}`,
  '"aerie run" starts one for this user; "aerie serve" starts one for the host; --host names another',
)
export const daemonNotStarted = fault(
  'daemon_not_started',
  'unavailable',
  { reason: Type.String(), log: Type.String(), said: Type.String() },
  (d) => `Cannot start a daemon for this user: ${d.reason}${d.said === '' ? '' : `\n${d.said}`}`,
  (d) => `Its log is ${d.log}; "aerie doctor" checks this host`,
)
export const folderUntrusted = fault(
  'folder_untrusted',
  'forbidden',
  { folder: Type.String(), reason: Type.String() },
  (d) => `Cannot use the sockets in ${d.folder}: ${d.reason}`,
  'Somebody else may listen there: remove the folder, or set XDG_STATE_HOME to one with a shorter path',
)
export const tokenFileUnreadable = fault(
  'token_file_unreadable',
  'invalid',
  { file: Type.String(), reason: Type.String() },
  (d) => `Cannot read the token of "${d.file}": ${d.reason}`,
)

/** What a started daemon is given to come up in, ms. */
const START_MS = 15_000
/** The exit code of a daemon that found another one on its state folder: kind `conflict` (exit.ts). */
const ANOTHER_RUNS = 5
const LOG_BYTES_MAX = 1024 * 1024
const LOG_LINES = 12
/** The daemon of one user ends when no vm and no client was there for so long. */
const IDLE_EXIT_S = 10

export type How = 'asked' | 'system' | 'user' | 'started'

/** A daemon that answers: where it is, and how it was found. */
export interface Reached {
  readonly endpoint: Endpoint
  readonly how: How
}

/** What the choice depends on, outside. */
export interface World {
  readonly env: Environment
  readonly uid: number
  readonly system: DaemonPaths
  readonly user: DaemonPaths
  /** The words that start this program. */
  readonly self: readonly string[]
  /** How long a daemon may take to start, ms; 15 s where it is absent. */
  readonly startMs?: number
}

/** Tells whether somebody accepts at a Unix socket; where not, the reason. */
export const answers = async (path: string): Promise<true | string> => {
  try {
    const socket = await Bun.connect({
      unix: path,
      socket: {
        data() {
          /* nothing is asked */
        },
        error() {
          /* it was only a try */
        },
      },
    })
    socket.end()
    return true
  } catch (error) {
    return String((error as { code?: unknown }).code ?? 'failed')
  }
}

/** Refuses a folder of somebody else: one in /tmp may be there with a socket in it that waits for our secrets. */
const checkOwn = (folder: string, uid: number): void => {
  let stat: ReturnType<typeof lstatSync>
  try {
    stat = lstatSync(folder, { throwIfNoEntry: false })
  } catch {
    return // nothing can be there: something above it is no folder, or is closed to us
  }
  if (!stat) return
  if (!stat.isDirectory()) throw folderUntrusted({ folder, reason: 'it is no folder' })
  if (stat.uid !== uid) throw folderUntrusted({ folder, reason: `it belongs to user ${stat.uid}` })
  if ((stat.mode & 0o022) !== 0) throw folderUntrusted({ folder, reason: 'others may write to it' })
}

/** Reads the token of a remote daemon from its file, or from AERIE_TOKEN. @throws `token_file_unreadable` */
export const readToken = (env: Environment, file: string | undefined): string | undefined => {
  if (file === undefined) return env['AERIE_TOKEN'] || undefined
  try {
    const token = readFileSync(file, 'utf8').trim()
    if (token === '') throw new Error('it is empty')
    return token
  } catch (error) {
    throw tokenFileUnreadable({ file, reason: messageOf(error) }, error)
  }
}

/**
 * Chooses the daemon that serves: the one that was named, else the host's, else this user's own, else (where needed) a
 * new one of this user.
 */
export const reach = async (
  world: World,
  asked: { readonly host?: string | undefined; readonly tokenFile?: string | undefined },
  need: Need,
): Promise<Reached> => {
  const host = asked.host ?? (world.env['AERIE_HOST'] || undefined)
  if (host !== undefined && host !== 'system' && host !== 'user') {
    return { endpoint: parseEndpoint(host, readToken(world.env, asked.tokenFile)), how: 'asked' }
  }
  const system: Reached = { endpoint: { kind: 'unix', path: world.system.socket }, how: 'system' }
  if (host === 'system') return { ...system, how: 'asked' }
  if (host === undefined && (await answers(world.system.socket)) === true) return system

  const { user } = world
  const found = await findOwn(user, world.uid)
  if (found !== undefined) return { endpoint: { kind: 'unix', path: found }, how: 'user' }
  if (need === 'use') throw daemonMissing({ system: world.system.socket, user: user.socket })
  return { endpoint: { kind: 'unix', path: await start(world, user) }, how: 'started' }
}

/**
 * Finds where the daemon of this user answers: at its socket, or at the one in its state, where it listens in any case.
 */
const findOwn = async (user: DaemonPaths, uid: number): Promise<string | undefined> => {
  for (const run of new Set([user.run, lastingRun(user.state) ?? user.run])) {
    const path = run === user.run ? user.socket : join(run, 'aerie.sock')
    checkOwn(run, uid)
    if ((await answers(path)) === true) return path
  }
  return undefined
}

/** Opens the log of the user's daemon for appending; one that has grown large makes room first. */
const openLog = (file: string): number => {
  if (existsSync(file) && statSync(file).size > LOG_BYTES_MAX) renameSync(file, `${file}.1`)
  return openSync(file, 'a', 0o600)
}

/** Takes the last lines of a log, its JSON lines as their messages. */
export const tailOf = (text: string): string =>
  text
    .split('\n')
    .filter((line) => line !== '')
    .slice(-LOG_LINES)
    .map((line) => {
      try {
        const { msg, err } = JSON.parse(line) as { msg?: unknown; err?: { message?: unknown } }
        return `  ${[msg, err?.message].filter((part) => typeof part === 'string').join(': ') || line}`
      } catch {
        return `  ${line}`
      }
    })
    .join('\n')

/**
 * Starts the daemon of this user and waits until it answers. Any number of callers may do so at once: the daemon's own
 * lock lets one through, the others end with `ANOTHER_RUNS`, and all callers wait for the same socket.
 */
const start = async (world: World, user: DaemonPaths): Promise<string> => {
  const { state, run, socket } = user
  const log = join(state, 'daemon.log')
  const startMs = world.startMs ?? START_MS
  const deadline = Date.now() + startMs
  const failed = (reason: string, said = '') => daemonNotStarted({ reason, log, said })
  try {
    mkdirSync(state, { recursive: true, mode: 0o700 })
  } catch (error) {
    throw failed(`its folder ${state} cannot be made: ${messageOf(error)}`)
  }
  for (;;) {
    let child: Bun.Subprocess
    let from: number
    try {
      const fd = openLog(log)
      try {
        from = statSync(log).size
        child = Bun.spawn({
          cmd: [
            ...world.self,
            'serve',
            '--user',
            '--state',
            state,
            '--run',
            run,
            '--socket',
            socket,
            '--idle-exit-s',
            String(IDLE_EXIT_S),
          ],
          stdio: ['ignore', fd, fd],
          detached: true,
          cwd: '/',
          env: { ...world.env },
        })
      } finally {
        closeSync(fd)
      }
    } catch (error) {
      throw failed(messageOf(error))
    }
    child.unref()
    let patience = Number.POSITIVE_INFINITY
    for (let pause = 10; ; pause = Math.min(100, pause * 1.5)) {
      const found = await findOwn(user, world.uid)
      if (found !== undefined) return found
      const now = Date.now()
      if (now >= deadline)
        throw failed(`it does not answer after ${startMs / 1000} s`, tailOf(readFileSync(log, 'utf8').slice(from)))
      if (child.exitCode !== null || child.signalCode !== null) {
        if (child.exitCode !== ANOTHER_RUNS) {
          throw failed(
            child.signalCode === null ? `it ended with code ${child.exitCode}` : `${child.signalCode} ended it`,
            tailOf(readFileSync(log, 'utf8').slice(from)),
          )
        }
        // The other one comes up, or it is on its way out and its lock is free soon.
        if (patience === Number.POSITIVE_INFINITY) patience = now + 500
        if (now >= patience) break
      }
      await sleep(pause)
    }
  }
}

/** Tells how this program is started again: the compiled file itself, or Bun with our first file. */
export const selfOf = (): readonly string[] =>
  import.meta.dir.startsWith('/$bunfs') ? [process.execPath] : [process.execPath, Bun.main]
