import { constants } from 'node:os'
import type { Ended, Exec } from '../client/exec.ts'
import { deferred } from '../lib/wait.ts'
import type { Programs } from './command.ts'
import { EXIT_INTERRUPTED, EXIT_PIPE } from './exit.ts'
import { isTerminal, stdin, terminalSize, writeAll } from './stdio.ts'

/** How a command of the guest is joined to this terminal. */
export interface Join {
  /** The guest's side has a terminal. */
  readonly tty: boolean
  readonly stdin: boolean
  /** ^P ^Q leaves, the command goes on. */
  readonly detachable: boolean
  /** Ends the stay after so long. */
  readonly timeoutMs?: number | undefined
  readonly rawTerminal: Programs['rawTerminal']
}

export type Left =
  | ({ readonly how: 'ended' } & Ended)
  | { readonly how: 'detached' }
  | { readonly how: 'timeout' }
  /** Nobody reads our output, or the same signal came again and again. */
  | { readonly how: 'gone'; readonly exit: number }

const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGQUIT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2'] as const
/** So many of the same signal, and we do not wait for the guest any longer. */
const PATIENCE = 3
const CTRL_P = 0x10
const CTRL_Q = 0x11

/** Whether the guest gets a terminal, and whether it gets our stdin: what is not said follows from what our own are. */
export const chooseJoin = (flags: {
  readonly interactive?: boolean
  readonly tty?: boolean
  readonly stdin?: boolean
}): { tty: boolean; stdin: boolean } => ({
  tty: flags.tty ?? (isTerminal(0) && isTerminal(1)),
  stdin: flags.interactive ?? flags.stdin ?? true,
})

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

/** Joins an exec with this process's stdin, stdout, stderr, signals and window size until the command ends or somebody leaves. */
export const stay = async (exec: Exec, join: Join): Promise<Left> => {
  const left = deferred<Left>()
  using raw = new DisposableStack()
  const reader = join.stdin ? stdin().getReader() : undefined
  if (join.tty && join.stdin && isTerminal(0)) raw.use(await join.rawTerminal())

  const counts = new Map<string, number>()
  const on = (name: NodeJS.Signals, act: () => void) => {
    process.on(name, act)
    raw.defer(() => {
      process.off(name, act)
    })
  }
  for (const name of FORWARDED) {
    on(name, () => {
      const count = (counts.get(name) ?? 0) + 1
      counts.set(name, count)
      exec.signal(constants.signals[name])
      if (count >= PATIENCE || name === 'SIGHUP')
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
    raw.defer(() => {
      clearTimeout(timer)
    })
  }

  const filter = join.detachable ? detachFilter() : undefined
  const pumpIn = async () => {
    for (;;) {
      const { done, value } = await reader!.read()
      if (done) break
      const typed = filter ? filter(value) : { bytes: value, detach: false }
      if (typed.bytes.length > 0) await exec.write(typed.bytes)
      if (typed.detach) {
        left.resolve({ how: 'detached' })
        return
      }
    }
    await exec.eof()
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
  if (reader)
    pumpIn().catch((error: unknown) => {
      left.reject(error)
    })
  try {
    return await Promise.race([pumpOut(), left.promise])
  } finally {
    exec.close()
    reader?.cancel().catch(() => undefined) // what is typed from now on is for whoever comes after us
  }
}

/** The exit code of a command, as a shell says it. */
export const codeOf = (ended: Ended): number => (ended.signal === null ? ended.code : 128 + ended.signal)
