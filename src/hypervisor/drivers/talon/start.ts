import { closeSync, constants as open_, fstatSync, openSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { Value } from '@sinclair/typebox/value'
import { embedded } from '../../../linux/embedded.ts'
import { closeFd } from '../../../linux/fd.ts'
import { Inherited, numbered } from '../../../linux/inherited.ts'
import { memfdEmpty, memfdSealed } from '../../../linux/memfd.ts'
import { pidfdSignal, sayExit } from '../../../linux/pidfd.ts'
import { bootId } from '../../../linux/proc.ts'
import { unixListen } from '../../../linux/socket.ts'
import { launch, launchedBefore, type Launched } from '../../../linux/spawn.ts'
import { WingError, wingErrorOf } from '../../../linux/wing.ts'
import { lastBytes } from '../../console-log.ts'
import {
  commonWalls,
  type HypervisorDriver,
  type Machine,
  type MachineIdentity,
  type MachineSpec,
  type Saved,
} from '../../driver.ts'
import { hasLandlock } from './report.ts'
import { hypervisorUnavailable, machineFailed } from '../../errors.ts'
import { VmmApi } from './api.ts'
import { messageOf } from '../../../lib/thrown.ts'
import { ConsoleNote, TalonMachine } from './machine.ts'

const SIGKILL = constants.signals.SIGKILL
/** What reading kernel and initramfs may take, from a disk that is slow. */
const BUILD_MS = 60_000

/** What talon inherits, by its own number; disks come behind. A later daemon that adopts it relies on them. */
const FD = numbered(
  'config',
  'api',
  'kvm',
  'vsock',
  'console',
  'consoleLog',
  'kernel',
  'initramfs',
  'ram',
  'state',
  'memory',
)
/** The name of the memory file in /proc/PID/fd, by which a daemon that adopts knows it. */
const RAM = 'aerie-ram'
const CONSOLE_NOTE = 'console.json'

/** Counts the bytes of a guest's memory, in whole huge pages. */
const ramBytes = (spec: MachineSpec): number => Math.ceil(spec.memoryMib / 2) * 2 ** 21

/**
 * Names the place on the guest's bus that a disk has in every boot, whatever other disks there are (native/talon,
 * layout.rs).
 */
const placeOf = (serial: string): string => serial.replace(/^vol(?=\d+$)/, 'volume')

/** The group whose limits the writable disks share. */
const OWN_DISKS = 'own'
/** What may be moved before the limit holds, in seconds of it: a boot, or an installation, is not slower. */
const BURST_S = 8

const bucket = (perS: number): unknown =>
  perS === 0 ? null : { size: perS, refill_time: 1000, one_time_burst: perS * BURST_S }

/** The numbers that the descriptors of disks and taps have in talon. */
interface Numbers {
  readonly disks: readonly number[]
  readonly taps: readonly number[]
}

/** Writes Cloud Hypervisor's VmConfig. */
const configOf = (spec: MachineSpec, { disks, taps }: Numbers, shared: boolean): unknown => ({
  payload: { kernel: `/dev/fd/${FD.kernel}`, initramfs: `/dev/fd/${FD.initramfs}`, cmdline: spec.cmdline },
  cpus: { boot_vcpus: spec.vcpus, max_vcpus: spec.vcpus },
  memory: shared
    ? { size: 0, zones: [{ id: 'ram', size: ramBytes(spec), shared: true, file: `/dev/fd/${FD.ram}` }] }
    : { size: ramBytes(spec) },
  disks: spec.disks.map((disk, index) => ({
    path: `/dev/fd/${disks[index]}`,
    readonly: disk.readOnly,
    serial: disk.serial,
    place: placeOf(disk.serial),
    rate_limit_group: disk.readOnly ? null : OWN_DISKS,
  })),
  rate_limit_groups: [
    {
      id: OWN_DISKS,
      rate_limiter_config: { bandwidth: bucket(spec.diskRate.bytesPerS), flushes: bucket(spec.diskRate.flushesPerS) },
    },
  ],
  net: spec.nics.map((nic, index) => ({
    id: `net${index}`,
    mac: nic.mac,
    fds: [taps[index]],
    ...(nic.kind === 'tap' && { mtu: nic.mtu }),
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

/**
 * Makes what talon is launched with: a machine to boot, or one that was saved, on new resources; memory then is a
 * private view of the file.
 */
const launchOf = (spec: MachineSpec, numbers: Numbers, from: Saved | undefined): unknown =>
  from
    ? { restore: { state_fd: FD.state, memory_fd: FD.memory, resume: false, config: configOf(spec, numbers, false) } }
    : configOf(spec, numbers, spec.forkable)

/** Starts a machine that boots, or one made of what was saved. @throws `hypervisor_unavailable`, `machine_failed` */
const start = async (
  spec: MachineSpec,
  from: Saved | undefined,
  landlockAbiMin: number,
  signal: AbortSignal,
): Promise<Machine> => {
  const user = spec.nics.find(({ kind }) => kind === 'user')
  if (user)
    throw hypervisorUnavailable({
      hypervisor: 'talon',
      reason: `it has no network of the kind "${user.kind}"; QEMU has`,
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
    const api = own(unixListen(join(spec.folder, 'api.sock'), { mode: 0o600 }))
    const vsock = own(unixListen(join(spec.folder, 'vsock'), { mode: 0o600 }))
    const serial = own(unixListen(join(spec.folder, 'console.sock'), { mode: 0o600 }))
    const consoleLog = own(openSync(spec.consoleLog, 'a', 0o600))
    const vmmLog = own(openSync(spec.vmmLog, 'a', 0o600))
    const kernel = own(openSync(spec.kernel, 'r'))
    const initramfs = own(openSync(spec.initramfs, 'r'))
    const disks = spec.disks.map((disk) => own(openSync(disk.path, disk.readOnly ? 'r' : 'r+')))
    const taps = spec.nics.flatMap((nic) => (nic.kind === 'tap' ? nic.open(1).map(own) : []))
    ram = spec.forkable && !from ? memfdEmpty(RAM, ramBytes(spec)) : undefined
    const given = new Inherited(FD)
    const numbers: Numbers = { disks: given.list(disks), taps: given.list(taps) }
    given.name('config', own(memfdSealed('machine', Buffer.from(JSON.stringify(launchOf(spec, numbers, from))))))
    given.name('api', api)
    given.name('kvm', kvm)
    given.name('vsock', vsock)
    given.name('console', serial)
    given.name('consoleLog', consoleLog)
    given.name('kernel', kernel)
    given.name('initramfs', initramfs)
    if (ram !== undefined) given.name('ram', ram)
    if (from) {
      given.name('state', from.state)
      given.name('memory', from.memory)
    }
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
          '--landlock-abi-min',
          String(landlockAbiMin),
        ],
        env: { AERIE_MACHINE: spec.mark },
        cwd: spec.folder,
        cwd_by: 'caller',
        umask: 0o077,
        cgroups: spec.cgroups,
        rlimits: { core: [0, 0], nofile: [4096, 4096] },
        // It empties its root with them and drops them before the guest runs; outside its namespaces they are worth
        // nothing.
        namespaces: ['user', 'mount', 'net', 'pid', 'ipc'],
        capabilities: 'keep',
        no_new_privs: true,
        ...(spec.jail ? { uid: spec.jail.uid, gid: spec.jail.gid, groups: [] } : {}), // /dev/kvm is open already
      },
      {
        stdout: vmmLog,
        stderr: vmmLog,
        signal,
        fds: given.fds,
      },
    )
    const running = main
    const identity: MachineIdentity = {
      bootId: bootId(),
      folder: spec.folder,
      uuid: spec.uuid,
      process: { pid: main.pid, startTime: main.startTime },
      helpers: [],
      walls: [
        ...commonWalls(spec),
        'namespaces',
        'empty-root',
        'seccomp',
        ...((await hasLandlock()) ? (['landlock'] as const) : []),
      ],
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
    const why = messageOf(error)
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

/** Reads what a talon that failed said last: its one JSON line with the causes, or what else there is. */
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

/**
 * Opens the memory of a machine that an earlier daemon started, where it may be shared and this user may open it: a
 * fork copies it where not.
 */
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

/**
 * Makes the driver of talon, our VMM (native/talon): one process, jailed. Namespaces and the user come from `wing
 * launch`, the empty root, Landlock and seccomp are its own; every file is an inherited descriptor, and the folder with
 * the vsock sockets is all that it sees.
 *
 * `--at-end hold`: a guest that ends, by reboot too, leaves talon standing with its events, so an end while no daemon
 * looks is read later.
 */
export const driverWith = (landlockAbiMin: number): HypervisorDriver => ({
  name: 'talon',
  nics: ['tap'],
  boots: 'vmlinux',
  adopt,
  start: (spec, signal) => start(spec, undefined, landlockAbiMin, signal),
  restore: (spec, from, signal) => start(spec, from, landlockAbiMin, signal),
})
