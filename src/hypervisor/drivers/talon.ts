import { closeSync, constants as open_, fstatSync, openSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { Type, type Static } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { deferred, sleep } from '../../lib/wait.ts'
import { embedded } from '../../linux/embedded.ts'
import { closeFd } from '../../linux/fd.ts'
import { memfdEmpty, memfdSealed } from '../../linux/memfd.ts'
import { pidfdSignal, sayExit, type Exit } from '../../linux/pidfd.ts'
import { bootId } from '../../linux/proc.ts'
import { unixListen } from '../../linux/socket.ts'
import { launch, launchedBefore, type Launched } from '../../linux/spawn.ts'
import { WingError, wingErrorOf } from '../../linux/wing.ts'
import { lastBytes, panicIn } from '../console-log.ts'
import type { End, HypervisorDriver, Machine, MachineIdentity, MachineSpec, Saved } from '../driver.ts'
import { hypervisorUnavailable, machineFailed } from '../errors.ts'
import { connectVsock } from '../vsock.ts'
import { endProcesses } from './end-processes.ts'
import { Forked, VerbRefused, VmmApi, type VmEvent } from './talon-api.ts'

const SIGKILL = constants.signals.SIGKILL
/** How long one request waits for an event; below what talon allows. */
const WAIT_MS = 50_000
/** Between two requests where one told nothing new before its time: a talon that its guest has taken over must not keep us busy. */
const CALM_MS = 500
/** What reading kernel and initramfs may take, from a disk that is slow. */
const BUILD_MS = 60_000
/** What the end of a process waits for an event that came over the socket before it. */
const LAST_WORD_MS = 1000
const CONSOLE_TAIL = 65_536

/** What talon inherits, by its own number. */
const FD = {
  config: 3,
  api: 4,
  kvm: 5,
  vsock: 6,
  console: 7,
  consoleLog: 8,
  kernel: 9,
  initramfs: 10,
  ram: 11,
  state: 12,
  memory: 13,
  disks: 16,
} as const
/** Of the memory file, in /proc/PID/fd: the daemon that adopts knows it by this. */
const RAM = 'aerie-ram'
const CONSOLE_NOTE = 'console.json'

/** Beside the sockets, for the daemon that adopts: where this boot's console begins. talon sees the file and may not read it. */
const ConsoleNote = Type.Object({ log: Type.String(), from: Type.Integer({ minimum: 0 }) })
type ConsoleNote = Static<typeof ConsoleNote>

/**
 * talon, our VMM (native/talon): one process, jailed. Namespaces and the user come from `wing launch`, the empty root, Landlock and seccomp
 * are its own; every file is an inherited descriptor, and the folder with the vsock sockets is all that it sees.
 *
 * `--at-end hold`: a guest that ends, by reboot too, leaves talon standing with its events, so an end while no daemon looks is read later.
 */
export const talon = (): HypervisorDriver => ({
  name: 'talon',
  boots: 'vmlinux',
  adopt,
  start: (spec, signal) => run(spec, undefined, signal),
  restore: (spec, from, signal) => run(spec, from, signal),
})

/** In whole huge pages. */
const ramBytes = (spec: MachineSpec): number => Math.ceil(spec.memoryMib / 2) * 2 ** 21

/** Cloud Hypervisor's VmConfig. */
const configOf = (spec: MachineSpec, shared: boolean): unknown => ({
  payload: { kernel: `/dev/fd/${FD.kernel}`, initramfs: `/dev/fd/${FD.initramfs}`, cmdline: spec.cmdline },
  cpus: { boot_vcpus: spec.vcpus, max_vcpus: spec.vcpus },
  memory: shared
    ? { size: 0, zones: [{ id: 'ram', size: ramBytes(spec), shared: true, file: `/dev/fd/${FD.ram}` }] }
    : { size: ramBytes(spec) },
  disks: spec.disks.map((disk, index) => ({
    path: `/dev/fd/${FD.disks + index}`,
    readonly: disk.readOnly,
    serial: disk.serial,
  })),
  rng: { src: '/dev/urandom' },
  balloon: { size: 0, deflate_on_oom: true, free_page_reporting: true },
  vsock: { cid: spec.cid, socket: join(spec.folder, 'vsock'), fd: FD.vsock },
  serial: {
    mode: 'Socket',
    socket: `/dev/fd/${FD.console}`,
    file: `/dev/fd/${FD.consoleLog}`,
    file_bytes: spec.consoleLogMib * 2 ** 20,
  },
  console: { mode: 'Off' },
})

/** What talon is launched with: a machine to boot, or one that was saved, on new resources; memory then is a private view of the file. */
const launchOf = (spec: MachineSpec, from: Saved | undefined): unknown =>
  from
    ? { restore: { state_fd: FD.state, memory_fd: FD.memory, resume: false, config: configOf(spec, false) } }
    : configOf(spec, spec.forkable)

const run = async (spec: MachineSpec, from: Saved | undefined, signal: AbortSignal): Promise<Machine> => {
  if (spec.nic)
    throw hypervisorUnavailable({
      hypervisor: 'talon',
      reason: `it has no network of the kind "${spec.nic.kind}"; QEMU has`,
    })
  const fds: number[] = []
  const own = (fd: number): number => {
    fds.push(fd)
    return fd
  }
  let main: Launched | undefined
  let ram: number | undefined
  try {
    const kvm = own(openKvm())
    const config = own(memfdSealed('machine', Buffer.from(JSON.stringify(launchOf(spec, from)))))
    const api = own(unixListen(join(spec.folder, 'api.sock'), { mode: 0o600 }))
    const vsock = own(unixListen(join(spec.folder, 'vsock'), { mode: 0o600 }))
    const serial = own(unixListen(join(spec.folder, 'console.sock'), { mode: 0o600 }))
    const consoleLog = own(openSync(spec.consoleLog, 'a', 0o600))
    const vmmLog = own(openSync(spec.vmmLog, 'a', 0o600))
    const kernel = own(openSync(spec.kernel, 'r'))
    const initramfs = own(openSync(spec.initramfs, 'r'))
    const disks = spec.disks.map((disk) => own(openSync(disk.path, disk.readOnly ? 'r' : 'r+')))
    ram = spec.forkable && !from ? memfdEmpty(RAM, ramBytes(spec)) : undefined
    const note: ConsoleNote = { log: spec.consoleLog, from: fstatSync(consoleLog).size }
    writeFileSync(join(spec.folder, CONSOLE_NOTE), JSON.stringify(note), { mode: 0o600 })
    const said = fstatSync(vmmLog).size

    main = await launch(
      {
        exe: { fd: embedded('talon').fd },
        // Its folder is where it stands, not a path: a state of root's own is closed to its user.
        argv: [
          'talon',
          'run',
          '--config-fd',
          String(FD.config),
          '--api-fd',
          String(FD.api),
          '--kvm-fd',
          String(FD.kvm),
          '--vsock-folder',
          '.',
          '--at-end',
          'hold',
        ],
        env: { AERIE_MACHINE: spec.mark },
        cwd: spec.folder,
        cwd_by: 'caller',
        umask: 0o077,
        cgroups: spec.cgroups,
        rlimits: { core: [0, 0], nofile: [4096, 4096] },
        // It empties its root with them and drops them before the guest runs; outside its namespaces they are worth nothing.
        namespaces: ['user', 'mount', 'net', 'pid', 'ipc'],
        capabilities: 'keep',
        no_new_privs: true,
        ...(spec.jail ? { uid: spec.jail.uid, gid: spec.jail.gid, groups: [] } : {}), // /dev/kvm is open already
      },
      {
        stdout: vmmLog,
        stderr: vmmLog,
        signal,
        fds: [
          [config, FD.config],
          [api, FD.api],
          [kvm, FD.kvm],
          [vsock, FD.vsock],
          [serial, FD.console],
          [consoleLog, FD.consoleLog],
          [kernel, FD.kernel],
          [initramfs, FD.initramfs],
          ...(ram === undefined ? [] : [[ram, FD.ram] as const]),
          ...(from
            ? ([
                [from.state, FD.state],
                [from.memory, FD.memory],
              ] as const)
            : []),
          ...disks.map((fd, index) => [fd, FD.disks + index] as const),
        ],
      },
    )
    const running = main
    const identity: MachineIdentity = {
      bootId: bootId(),
      folder: spec.folder,
      uuid: spec.uuid,
      process: { pid: main.pid, startTime: main.startTime },
      helpers: [],
    }
    // It answers when the machine has been built and its processors run.
    await Promise.race([
      new VmmApi(join(spec.folder, 'api.sock')).info(signal, BUILD_MS),
      running.exited.then((exit) => {
        throw new Error([`it ${sayExit(exit)}`, lastWords(spec.vmmLog, said) ?? []].flat().join(': '))
      }),
    ])
    const machine = new TalonMachine(identity, running, note, ram, () => lastWords(spec.vmmLog, said))
    ram = undefined // the machine's from now on
    return machine
  } catch (error) {
    if (main) {
      pidfdSignal(main.pidfd, SIGKILL)
      await main.exited
      closeFd(main.pidfd)
    }
    if (signal.aborted) throw error
    const why = error instanceof Error ? error.message : String(error)
    if (error instanceof KvmClosed) throw hypervisorUnavailable({ hypervisor: 'talon', reason: why }, error)
    if (error instanceof WingError && error.code.startsWith('namespace_')) {
      throw hypervisorUnavailable({ hypervisor: 'talon', reason: `its jail needs user namespaces: ${why}` }, error)
    }
    throw machineFailed({ hypervisor: 'talon', reason: why }, error)
  } finally {
    for (const fd of [...fds, ...(ram === undefined ? [] : [ram])]) closeSync(fd)
  }
}

class KvmClosed extends Error {}

const openKvm = (): number => {
  try {
    return openSync('/dev/kvm', open_.O_RDWR)
  } catch (error) {
    throw new KvmClosed(`/dev/kvm cannot be opened: ${String(error)}`, { cause: error })
  }
}

/** What a talon that failed said last: its one JSON line with the causes, or what else there is. */
const lastWords = (log: string, from: number): string | undefined => {
  let text: string
  try {
    text = lastBytes(log, 4096, from).trim()
  } catch {
    return undefined
  } // its vm has been deleted
  const error = wingErrorOf(text)
  const words = error ? [error.message, ...error.chain].join(': ') : text.split('\n').slice(-3).join(' ')
  return words === '' ? undefined : words.slice(0, 1000)
}

const adopt = (identity: MachineIdentity): Promise<Machine | undefined> => {
  const running = identity.bootId === bootId() ? launchedBefore(identity.process) : undefined
  if (!running) return Promise.resolve(undefined)
  return Promise.resolve(
    new TalonMachine(identity, running, noteIn(identity.folder), ramOf(identity.process.pid), () => undefined),
  )
}

/** The memory of a machine that an earlier daemon started, where it may be shared and this user may open it: a fork copies it where not. */
const ramOf = (pid: number): number | undefined => {
  const path = `/proc/${pid}/fd/${FD.ram}`
  try {
    return readlinkSync(path).startsWith(`/memfd:${RAM}`) ? openSync(path, 'r+') : undefined
  } catch {
    return undefined
  }
}

const noteIn = (folder: string): ConsoleNote | undefined => {
  try {
    const note: unknown = JSON.parse(readFileSync(join(folder, CONSOLE_NOTE), 'utf8'))
    return Value.Check(ConsoleNote, note) ? note : undefined
  } catch {
    return undefined
  }
}

class TalonMachine implements Machine {
  readonly identity: MachineIdentity
  readonly consoleSocket: string
  readonly #process: Launched
  readonly #api: VmmApi
  readonly #note: ConsoleNote | undefined
  readonly #ended = deferred<End>()
  /** Aborted when there is nobody to ask any more. */
  readonly #over = new AbortController()
  readonly #lastWords: () => string | undefined
  /** Its memory, until it has been frozen or the machine has ended. */
  #ram: number | undefined
  #isEnded = false
  #killed: Promise<void> | undefined

  constructor(
    identity: MachineIdentity,
    process: Launched,
    note: ConsoleNote | undefined,
    ram: number | undefined,
    lastWords: () => string | undefined,
  ) {
    this.identity = identity
    this.consoleSocket = join(identity.folder, 'console.sock')
    this.#process = process
    this.#api = new VmmApi(join(identity.folder, 'api.sock'))
    this.#note = note
    this.#ram = ram
    this.#lastWords = lastWords
    const heard = this.#follow()
    void process.exited.then(async (exit) => {
      await Promise.race([heard, sleep(LAST_WORD_MS)])
      this.#over.abort()
      this.#closeRam()
      this.#end(this.#ofExit(exit))
    })
  }

  get ended(): Promise<End> {
    return this.#ended.promise
  }

  #end(end: End): void {
    this.#isEnded = true
    this.#ended.resolve(end)
  }

  /** Hears every event from the first one on, also those from before an adoption, until one is the end or the process has gone. */
  async #follow(): Promise<void> {
    const signal = this.#over.signal
    let gone = false
    void this.#process.exited.then(() => {
      gone = true
    })
    for (let after = 0; !this.#isEnded && !signal.aborted; ) {
      const asked = Date.now()
      const before = after
      try {
        const { events, last } = await this.#api.events(after, WAIT_MS, signal)
        for (const event of events) this.#hear(event)
        after = Math.max(after, last)
      } catch {
        if (gone) return
      }
      if (after === before && Date.now() - asked < WAIT_MS) await sleep(CALM_MS, signal)
    }
  }

  #hear({ source, event }: VmEvent): void {
    if (source !== 'vm') return
    if (event === 'panic') this.#end({ reason: 'panic', code: null, message: this.#panic() ?? '' })
    else if (event === 'shutdown') this.#end({ reason: 'poweroff', code: null, message: '' })
    else if (event === 'reset') {
      // A guest without the driver of pvpanic resets when it panics, and only its console tells.
      const panic = this.#panic()
      this.#end(
        panic === undefined
          ? { reason: 'reboot', code: null, message: '' }
          : { reason: 'panic', code: null, message: panic },
      )
    }
  }

  #panic(): string | undefined {
    if (!this.#note) return undefined
    try {
      return panicIn(lastBytes(this.#note.log, CONSOLE_TAIL, this.#note.from))
    } catch {
      return undefined
    }
  }

  #ofExit(exit: Exit): End {
    if (exit.code !== null)
      return { reason: 'failed', code: exit.code, message: this.#lastWords() ?? `talon ended with code ${exit.code}` }
    if (exit.signal === null) return { reason: 'gone', code: null, message: 'talon has gone' }
    return {
      reason: exit.signal === SIGKILL ? 'killed' : 'failed',
      code: null,
      message: [`talon was killed by signal ${exit.signal}`, this.#lastWords() ?? []].flat().join(': '),
    }
  }

  connect(port: number, signal: AbortSignal) {
    return connectVsock(join(this.identity.folder, 'vsock'), port, signal)
  }
  pause(signal: AbortSignal): Promise<void> {
    return this.#become('paused', 'vm.pause', signal)
  }
  resume(signal: AbortSignal): Promise<void> {
    return this.#become('running', 'vm.resume', signal)
  }
  powerButton(signal: AbortSignal): Promise<void> {
    return this.#api.put('vm.power-button', signal)
  }

  async snapshot(into: Saved, signal: AbortSignal): Promise<void> {
    await this.#api.putFds('vm.snapshot', Type.Unknown(), [into.state, into.memory], signal)
  }

  async fork(into: Saved, signal: AbortSignal): Promise<Saved> {
    const ram = this.#ram
    if (ram === undefined) {
      await this.snapshot(into, signal)
      return into
    }
    const { memory } = await this.#api.putFds('vm.fork', Forked, [into.state, into.memory], signal)
    if (memory === 'copy') return into
    // Sealed, and the machine stands on a private view of it: it can be frozen once.
    this.#ram = undefined
    closeSync(into.memory)
    return { state: into.state, memory: ram }
  }

  #closeRam(): void {
    if (this.#ram !== undefined) closeSync(this.#ram)
    this.#ram = undefined
  }

  /** talon refuses what is so already; here that is no error. */
  async #become(state: 'running' | 'paused', verb: 'vm.pause' | 'vm.resume', signal: AbortSignal): Promise<void> {
    try {
      await this.#api.put(verb, signal)
    } catch (error) {
      if (!(error instanceof VerbRefused) || (await this.state(signal)) !== state) throw error
    }
  }

  async state(signal: AbortSignal): Promise<'running' | 'paused' | 'ended'> {
    if (this.#isEnded) return 'ended'
    const { state } = await this.#api.info(signal)
    return state === 'Running' ? 'running' : state === 'Paused' ? 'paused' : 'ended'
  }

  kill(): Promise<void> {
    return (this.#killed ??= this.#kill())
  }

  async #kill(): Promise<void> {
    try {
      await endProcesses('talon', [this.#process])
    } finally {
      this.#over.abort()
    }
  }
}
