import { checked, hasCode } from './errno.ts'
import { setNonblock } from './fd.ts'
import { closeFd } from './fd.ts'
import { host } from './host-library.ts'
import { processStat } from './proc.ts'

/** How a process ended; null where the kernel tells only its parent, and that is not us. */
export interface Exit {
  readonly code: number | null
  readonly signal: number | null
}

/** Writes how a process ended as a sentence without its subject. */
export const sayExit = (exit: Exit): string =>
  exit.signal === null ? `ended with code ${exit.code ?? '?'}` : `was killed by signal ${exit.signal}`

const STATUS_BYTES = 12 // ExitStatus: known, code, status
const CLD_EXITED = 1 // asm-generic/siginfo.h

const readExit = (status: Int32Array): Exit => {
  const [known, code, value] = status
  if (known !== 1 || value === undefined) return { code: null, signal: null }
  return code === CLD_EXITED ? { code: value, signal: null } : { code: null, signal: value }
}

/**
 * Opens a descriptor that means this process for ever, whatever becomes of its number: pidfd_open(2). For a pid from a
 * file or a row, compare the start time (`proc.ts`) **after** this call. The caller closes it.
 *
 * @throws ESRCH: there is none; EINVAL: a thread, or 0
 */
export const pidfdOpen = (pid: number): number => checked(host().aerie_pidfd_open(pid), 'pidfd_open')

/** Sends a signal; false where the process has ended. @throws EPERM, EINVAL (no such signal), EBADF */
export const pidfdSignal = (pidfd: number, signal: number): boolean => {
  try {
    checked(host().aerie_pidfd_send_signal(pidfd, signal), 'pidfd_send_signal')
    return true
  } catch (error) {
    if (hasCode(error, 'ESRCH')) return false
    throw error
  }
}

/** Tells how a process ended, undefined while it runs. Takes nothing away from whoever waits for it. @throws EBADF */
export const pidfdExited = (pidfd: number): Exit | undefined => {
  const status = new Int32Array(STATUS_BYTES / 4)
  return checked(host().aerie_pidfd_exited(pidfd, status, STATUS_BYTES), 'waitid') === 0 ? undefined : readExit(status)
}

/**
 * Waits for a child that Bun does not know of (`launch` with a pid namespace), and lets its number go. Undefined while
 * it runs.
 *
 * @throws ECHILD: not a child of ours, or waited for already
 */
export const pidfdReap = (pidfd: number): Exit | undefined => {
  const status = new Int32Array(STATUS_BYTES / 4)
  return checked(host().aerie_pidfd_reap(pidfd, status, STATUS_BYTES), 'waitid') === 0 ? undefined : readExit(status)
}

/** The time between two looks, ms, should the event ever fail to come: a guard, not the mechanism. */
const LOOK_AGAIN_MS = 200

/**
 * Resolves when the process has ended, by the kernel's event: a pidfd becomes readable then, and reading it is EINVAL.
 * (Bun waits with epoll before it reads a non-blocking descriptor; the answer is checked, so that another behaviour
 * costs time and not truth.) Makes the pidfd non-blocking, which only reads can notice. Do not close it before.
 *
 * @throws what the signal says, where it comes first
 */
export const whenExited = async (pidfd: number, signal?: AbortSignal): Promise<Exit> => {
  setNonblock(pidfd, true)
  for (;;) {
    signal?.throwIfAborted()
    const exit = pidfdExited(pidfd)
    if (exit) return exit
    const reader = Bun.file(pidfd).stream().getReader()
    const stop = () => {
      void reader.cancel().catch(() => undefined)
    }
    signal?.addEventListener('abort', stop, { once: true })
    try {
      await reader.read().catch(() => undefined)
    } finally {
      signal?.removeEventListener('abort', stop)
    }
    if (!signal?.aborted && !pidfdExited(pidfd)) await Bun.sleep(LOOK_AGAIN_MS)
  }
}

/**
 * Opens the process that was written down with this start time; undefined where it has ended (a zombie too),
 * or where its number belongs to another now. The caller closes it.
 */
export const holdProcess = (id: { readonly pid: number; readonly startTime: string }): number | undefined => {
  let pidfd: number
  try {
    pidfd = pidfdOpen(id.pid)
  } catch {
    return undefined
  }
  const stat = processStat(id.pid)
  if (stat && stat.startTime === id.startTime && stat.state !== 'Z') return pidfd
  closeFd(pidfd)
  return undefined
}
