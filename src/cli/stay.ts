import { constants } from 'node:os'
import type { Ended, Exec } from '../client/exec-stream.ts'
import { Fault } from '../lib/fault.ts'
import { deferred, orAbort } from '../lib/promise.ts'
import type { Programs, Terminal } from './command.ts'
import { EXIT_INTERRUPTED, EXIT_PIPE } from './exit.ts'
import { isTerminal, terminalSize, writeAll } from './stdio.ts'
import { messageOf } from '../lib/thrown.ts'
import { openStdin, type Stdin } from './stdin.ts'

/** How a command of the guest is joined to this process. */
export interface Join {
  /** The guest's side has a terminal. */
  readonly tty: boolean
  readonly stdin: boolean
  /** The terminal that our stdin is; undefined where it is none. */
  readonly terminal: Terminal | undefined
}

/** How a terminal stays with a command of a guest until one of the two ends. */
export interface Stay extends Join {
  /** ^P ^Q leaves, the command goes on. */
  readonly detachable: boolean
  /** We only look: what would end us is for us, and not for the command. */
  readonly looks?: boolean
  /** Ends the stay after so long. */
  readonly timeoutMs?: number | undefined
  /**
   * Asks the guest for a sign of life; rejects where it gives none. Where it is absent, a ^C that is typed is always
   * the guest's.
   */
  readonly probe?: (signal: AbortSignal) => Promise<unknown>
  /** Says what a person has to know. */
  readonly warn: (text: string) => void
}

export type Left =
  | ({ readonly how: 'ended' } & Ended)
  | { readonly how: 'detached' }
  | { readonly how: 'timeout' }
  /** Nobody reads our output, or whoever waits for the guest has had enough. */
  | { readonly how: 'gone'; readonly exit: number }

const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGQUIT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2'] as const
/** So many of the same signal, and we do not wait for the guest any longer. */
const PATIENCE = 2
/** What the guest is given to show that it lives, ms, when ^C is typed. */
const PROBE_MS = 1000
const CTRL_C = 0x03
const CTRL_P = 0x10
const CTRL_Q = 0x11

/**
 * Chooses whether the guest gets a terminal and our stdin. As with Docker, nothing of stdin is read without -i; on a
 * terminal -it is what one gets without asking, but not in the background of a shell, where whoever reads the terminal
 * is stopped.
 */
export const chooseJoin = async (
  flags: { readonly interactive?: boolean; readonly tty?: boolean; readonly stdin?: boolean },
  programs: Pick<Programs, 'terminal'>,
): Promise<Join> => {
  const terminal = isTerminal(0) ? await programs.terminal() : undefined
  const person = terminal !== undefined && isTerminal(1) && terminal.foreground()
  return { tty: flags.tty ?? person, stdin: flags.interactive ?? flags.stdin ?? person, terminal }
}

/** Passes on what is typed; true where ^P ^Q was. A ^P is held back until the next key shows what it was. */
export const detachFilter = () => {
  let held = false
  return (bytes: Uint8Array): { readonly bytes: Uint8Array; readonly detach: boolean } => {
    const kept: number[] = []
    for (const byte of bytes) {
      if (held && byte === CTRL_Q) return { bytes: Uint8Array.from(kept), detach: true }
      if (held) kept.push(CTRL_P)
      held = byte === CTRL_P
      if (!held) kept.push(byte)
    }
    return { bytes: kept.length === bytes.length ? bytes : Uint8Array.from(kept), detach: false }
  }
}

/**
 * Tells when a person who types ^C at a guest that does not answer has typed it once too often: the first one asks the
 * guest for a sign of life, and one more without it leaves.
 */
const giveUp = (probe: NonNullable<Stay['probe']>): (() => boolean) => {
  let silent = false
  let askedAt: number | undefined
  return () => {
    if (silent || (askedAt !== undefined && Date.now() - askedAt >= PROBE_MS)) return true
    if (askedAt !== undefined) return false
    askedAt = Date.now()
    probe(AbortSignal.timeout(PROBE_MS)).then(
      () => {
        askedAt = undefined
      },
      (error: unknown) => {
        askedAt = undefined
        silent = !(error instanceof Fault) || ['unavailable', 'timeout', 'conflict'].includes(error.kind)
      },
    )
    return false
  }
}

/**
 * Joins an exec with this process's stdin, stdout, stderr, signals and window size until the command ends or somebody
 * leaves.
 */
export const stay = async (exec: Exec, join: Stay): Promise<Left> => {
  const left = deferred<Left>()
  using undo = new DisposableStack()
  const on = (name: NodeJS.Signals, act: () => void) => {
    process.on(name, act)
    undo.defer(() => {
      process.off(name, act)
    })
  }

  const filter = join.detachable ? detachFilter() : undefined
  const hopeless = join.probe === undefined ? undefined : giveUp(join.probe)
  let raw: ReturnType<Terminal['raw']>
  let reader: Stdin | undefined
  const pumpIn = async (from: Stdin) => {
    for (;;) {
      let value: Uint8Array | undefined
      try {
        value = await from.read()
      } catch (error) {
        // A terminal that a shell has taken back: what is typed is for others, and the command goes on.
        if (join.terminal && !join.terminal.foreground()) return
        join.warn(`${messageOf(error)}: the command reads its end`)
      }
      if (value === undefined) break
      const typed = filter ? filter(value) : { bytes: value, detach: false }
      if (raw && typed.bytes.includes(CTRL_C) && hopeless?.()) {
        left.resolve({ how: 'gone', exit: EXIT_INTERRUPTED })
        return
      }
      if (typed.bytes.length > 0) await exec.write(typed.bytes)
      if (typed.detach) {
        left.resolve({ how: 'detached' })
        return
      }
    }
    await exec.eof()
  }
  /** Takes the terminal, or what else stdin is; from the background of a shell nothing is taken. */
  const listen = async () => {
    if (!join.stdin || reader || (join.terminal && !join.terminal.foreground())) return
    const from = (reader = openStdin())
    if (join.tty) raw = join.terminal?.raw()
    if (raw) undo.use(raw)
    await pumpIn(from)
  }
  const startListening = () => {
    listen().catch((error: unknown) => {
      left.reject(error)
    })
  }
  // The shell has brought us (back) to the foreground.
  on('SIGCONT', () => {
    raw?.renew()
    startListening()
  })

  const counts = new Map<string, number>()
  for (const name of FORWARDED) {
    on(name, () => {
      const count = (counts.get(name) ?? 0) + 1
      counts.set(name, count)
      if (join.looks !== true) exec.signal(constants.signals[name])
      if (count >= PATIENCE || name === 'SIGHUP' || join.looks === true)
        left.resolve({ how: 'gone', exit: name === 'SIGINT' ? EXIT_INTERRUPTED : 128 + constants.signals[name] })
    })
  }
  if (join.tty) {
    on('SIGWINCH', () => {
      const size = terminalSize()
      if (size) exec.resize(size.cols, size.rows)
    })
  }
  if (join.timeoutMs !== undefined) {
    const timer = setTimeout(() => {
      exec.signal(constants.signals.SIGTERM)
      left.resolve({ how: 'timeout' })
    }, join.timeoutMs)
    undo.defer(() => {
      clearTimeout(timer)
    })
  }

  const pumpOut = async (): Promise<Left> => {
    const output = exec.output()
    for (;;) {
      const { done, value } = await output.next()
      if (done) return { how: 'ended', ...value }
      try {
        await writeAll(value.stream === 'stdout' ? 1 : 2, value.bytes)
      } catch (error) {
        // A stderr that nobody hears is no reason to stop; a stdout that nobody reads is, as for any filter.
        if (value.stream === 'stderr') continue
        if ((error as { code?: unknown }).code === 'EPIPE') return { how: 'gone', exit: EXIT_PIPE }
        throw error
      }
    }
  }
  startListening()
  try {
    return await Promise.race([pumpOut(), left.promise])
  } finally {
    exec.close()
    reader?.cancel().catch(() => undefined) // what is typed from now on is for whoever comes after us
  }
}

/** Waits for `promise`, but not longer than until `deadline` (ms since 1970): undefined where that comes first. */
export const beforeDeadline = async <T>(promise: Promise<T>, deadline: number | undefined): Promise<T | undefined> => {
  if (deadline === undefined) return promise
  const over = AbortSignal.timeout(Math.max(1, deadline - Date.now()))
  try {
    return await orAbort(promise, over)
  } catch (error) {
    if (over.aborted && error === over.reason) return undefined
    throw error
  }
}

/** Gives the exit code of a command as a shell does. */
export const codeOf = (ended: Ended): number => (ended.signal === null ? ended.code : 128 + ended.signal)
