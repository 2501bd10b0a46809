import { constants } from 'node:os'
import { embedded } from './embedded.ts'
import { closeFd, setNonblock } from './fd.ts'
import { memfdSealed } from './memfd.ts'
import { holdProcess, pidfdOpen, pidfdReap, pidfdSignal, whenExited, type Exit } from './pidfd.ts'
import { startTimeOf } from './proc.ts'
import { socketPair } from './socket.ts'
import { wingCommand, WingError, wingErrorOf } from './wing.ts'

/**
 * What to start and as whom; the JSON of `wing launch` (native/README.md), where every field and its default is
 * explained.
 */
export interface LaunchSpec {
  readonly argv: readonly string[]
  /** An absolute path, or a descriptor of ours. */
  readonly exe: string | { readonly fd: number }
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  readonly cwd_by?: 'user' | 'caller'
  readonly cgroups?: readonly string[]
  readonly umask?: number
  readonly oom_score_adj?: number
  /** `[soft, hard]`; null is unlimited. */
  readonly rlimits?: Readonly<Record<string, readonly [number | null, number | null]>>
  readonly namespaces?: readonly ('user' | 'mount' | 'net' | 'pid' | 'ipc')[]
  readonly uid?: number
  readonly gid?: number
  readonly groups?: readonly number[]
  readonly no_new_privs?: boolean
  readonly capabilities?: 'drop' | 'keep'
}

/** The descriptors that a launched program starts with. */
export interface LaunchFiles {
  /**
   * Descriptors of ours for 0, 1 and 2; absent is `/dev/null`. A program that outlives us must not write into a pipe of
   * ours.
   */
  readonly stdin?: number | undefined
  readonly stdout?: number | undefined
  readonly stderr?: number | undefined
  /** `[ours, its]`, its 3 to 255. Ours stay open. */
  readonly fds?: readonly (readonly [number, number])[] | undefined
  /** Kills what has been started so far. */
  readonly signal?: AbortSignal | undefined
}

/** A program that runs, in a session of its own: it survives us and hears no signal of our terminal. */
export interface Launched {
  readonly pid: number
  /** Field 22 of /proc/PID/stat: with pid and boot id, the name of this process for ever. */
  readonly startTime: string
  /** The caller closes it, after `exited` if it wants to know that. */
  readonly pidfd: number
  readonly exited: Promise<Exit>
}

// Descriptors of the launcher: 3 is its specification.
const REPORT_SLOT = 4
const FIRST_SLOT = 5
const SIGKILL = 9
/** The most bytes that the launcher reads; it could complain on stderr only, which is the program's. */
const SPEC_BYTES_MAX = 2 ** 20

/**
 * Finds a process that an earlier daemon launched by what was written down of it; undefined where it is gone or its
 * number belongs to another now.
 */
export const launchedBefore = (id: Pick<Launched, 'pid' | 'startTime'>): Launched | undefined => {
  const pidfd = holdProcess(id)
  return pidfd === undefined ? undefined : { pid: id.pid, startTime: id.startTime, pidfd, exited: whenExited(pidfd) }
}

/**
 * Starts a program through `wing launch` and resolves when it has been executed, with every confinement in place.
 *
 * @throws WingError: why it was not (`cgroup_denied`, `exec_missing`, …); the signal's reason. Nothing is left running
 * then
 */
export const launch = async (spec: LaunchSpec, files: LaunchFiles = {}): Promise<Launched> => {
  const { signal } = files
  signal?.throwIfAborted()
  const { launcher, started, report } = start(spec, files)
  const kill = () => {
    launcher.kill('SIGKILL')
  }
  signal?.addEventListener('abort', kill, { once: true })
  try {
    const { pid, error } = await readReport(report).catch((error: unknown) => ({ pid: undefined, error }))
    const program = pid === undefined || pid === launcher.pid ? started : adoptChild(pid, started)
    if (pid !== undefined && !error && !signal?.aborted) return program
    if (!(error instanceof WingError)) pidfdSignal(program.pidfd, SIGKILL) // aborted, or it has said nothing: whatever it is now, nobody will know it
    await program.exited
    closeFd(program.pidfd)
    signal?.throwIfAborted()
    throw error ?? new WingError('wing_died', `wing launch ended with ${launcher.signalCode ?? launcher.exitCode}`)
  } finally {
    signal?.removeEventListener('abort', kill)
  }
}

/**
 * Does everything up to the first wait: what needs the pid happens in one turn of the event loop, in which Bun cannot
 * wait for the child.
 */
const start = (spec: LaunchSpec, { stdin, stdout, stderr, fds = [] }: LaunchFiles) => {
  const slots: number[] = []
  const launcherFd = embedded('wing').fd
  const place = (fd: number): number => {
    // Placed before the launcher is executed by its number, which must still be the launcher then.
    if (FIRST_SLOT + slots.length === launcherFd) slots.push(launcherFd)
    return FIRST_SLOT + slots.push(fd) - 1
  }
  const asked: Record<string, unknown> = {
    ...spec,
    setsid: true,
    report_fd: REPORT_SLOT,
    fds: fds.map(([ours, its]) => [place(ours), its]),
  }
  if (typeof spec.exe === 'object') asked['exe'] = { fd: place(spec.exe.fd) }
  const json = Buffer.from(JSON.stringify(asked))
  if (json.length > SPEC_BYTES_MAX)
    throw new WingError('spec_too_large', `the specification is longer than ${SPEC_BYTES_MAX} bytes`)

  using onlyHere = new DisposableStack()
  using onFailure = new DisposableStack()
  const specFd = onlyHere.adopt(memfdSealed('launch', json), closeFd)
  const [report, reportEnd] = socketPair()
  onFailure.adopt(report, closeFd)
  onlyHere.adopt(reportEnd, closeFd)
  const launcher = Bun.spawn({
    ...wingCommand(['launch']),
    detached: true,
    stdio: [stdin ?? 'ignore', stdout ?? 'ignore', stderr ?? 'ignore', specFd, reportEnd, ...slots],
  })
  onFailure.defer(() => {
    launcher.kill('SIGKILL')
  })
  launcher.unref()
  const pidfd = onFailure.adopt(pidfdOpen(launcher.pid), closeFd)
  const startTime = startTimeOf(launcher.pid) ?? ''
  const exited = launcher.exited.then((code) => endOf(code, launcher.signalCode))
  onFailure.move()
  return { launcher, report, started: { pid: launcher.pid, startTime, pidfd, exited } }
}

const endOf = (code: number, signal: NodeJS.Signals | number | null): Exit =>
  signal === null
    ? { code, signal: null }
    : { code: null, signal: typeof signal === 'number' ? signal : constants.signals[signal] }

/**
 * Takes over the program in a new pid namespace: a child of ours that Bun does not know of, so its number is safe until
 * we wait for it.
 */
const adoptChild = (pid: number, launcher: Launched): Launched => {
  closeFd(launcher.pidfd) // before the next one is opened: there may be no room for both
  const pidfd = pidfdOpen(pid)
  const startTime = startTimeOf(pid) ?? ''
  return {
    pid,
    startTime,
    pidfd,
    exited: whenExited(pidfd).then(() => pidfdReap(pidfd) ?? { code: null, signal: null }),
  }
}

/**
 * Reads the lines of `report_fd` until its end: the pid as we see it, and the error where there was one. Closes the
 * descriptor.
 */
const readReport = async (
  fd: number,
): Promise<{ readonly pid: number | undefined; readonly error: WingError | undefined }> => {
  try {
    setNonblock(fd, true) // Bun waits with epoll for such a descriptor, and would block for another
    const text = await Bun.file(fd).text()
    const pid = /^\{"pid":(\d+)\}$/m.exec(text)?.[1]
    return { pid: pid === undefined ? undefined : Number(pid), error: wingErrorOf(text) }
  } finally {
    closeFd(fd)
  }
}
