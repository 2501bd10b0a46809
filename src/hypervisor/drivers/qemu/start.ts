import { closeSync, constants as open_, fstatSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { constants } from 'node:os'
import { Type } from '@sinclair/typebox'
import { embedded } from '../../../linux/embedded.ts'
import { closeFd } from '../../../linux/fd.ts'
import { Inherited } from '../../../linux/inherited.ts'
import { MARK } from '../../../linux/marked.ts'
import { bootId } from '../../../linux/proc.ts'
import { pidfdSignal, sayExit } from '../../../linux/pidfd.ts'
import { socketPair, unixListen } from '../../../linux/socket.ts'
import { launch, launchedBefore, type Launched, type LaunchFiles, type LaunchSpec } from '../../../linux/spawn.ts'
import { WingError, wing } from '../../../linux/wing.ts'
import { deferred, orAbort } from '../../../lib/promise.ts'
import { lastBytes } from '../../console-log.ts'
import {
  commonWalls,
  type HypervisorDriver,
  type Machine,
  type MachineIdentity,
  type MachineSpec,
  type Saved,
} from '../../driver.ts'
import { hypervisorUnavailable, machineFailed } from '../../errors.ts'
import { argv, FD, queuesOf, type QemuOptions } from './argv.ts'
import { FILE, plugVsock, QemuMachine, SHAPE_VARIABLE } from './machine.ts'
import { copyMemory, openMemory } from './memory.ts'
import { QemuVersion, readState, sayVersion, shapeOf, type Trailer } from './saved.ts'
import { tellReset } from './vsock-device.ts'
import { Qmp, QmpBroken, readEvent } from './qmp.ts'
import { messageOf } from '../../../lib/thrown.ts'
import { Qtest } from './qtest.ts'

/** The answers of qapi/migration.json and qapi/machine.json that are read. */
const Migration = Type.Object({ status: Type.String({ maxLength: 64 }) })
const Uuid = Type.Object({ UUID: Type.String({ maxLength: 64 }) })

const SIGKILL = constants.signals.SIGKILL

/**
 * Gives namespaces of its own to a process that needs nothing of the host but its descriptors: a second wall behind
 * that of its user, where a guest has broken out of it. Root makes them by right; whoever is not makes a user namespace
 * first.
 */
const namespaces = (needsNetwork: boolean): NonNullable<LaunchSpec['namespaces']> => [
  ...(process.getuid?.() === 0 ? [] : (['user'] as const)),
  'mount',
  'pid',
  'ipc',
  ...(needsNetwork ? [] : (['net'] as const)),
]

const PROBE_MS = 5000

/**
 * Some hosts forbid them to whoever is not root, and QEMU is what runs there: `aerie doctor` and each machine's record
 * say so.
 */
let forbidden = false

/**
 * Tells whether this host lets a machine have namespaces of its own: a process that ends at once is launched in some.
 */
export const hasNamespaces = async (): Promise<boolean> => {
  if (forbidden) return false
  try {
    const { exited, pidfd } = await launch(
      {
        exe: { fd: embedded('wing').fd },
        argv: ['wing'],
        env: {},
        cwd: '/',
        no_new_privs: true,
        capabilities: 'drop',
        namespaces: namespaces(false),
      },
      { signal: AbortSignal.timeout(PROBE_MS) },
    )
    await exited
    closeFd(pidfd)
    return true
  } catch (error) {
    if (error instanceof WingError && error.code.startsWith('namespace_')) return false
    throw error
  }
}

/** A process, and whether it is in namespaces of its own. */
interface Apart {
  readonly launched: Launched
  readonly apart: boolean
}

/** Launches a process of a machine in namespaces of its own, or without any where this host has none for this user. */
const launchApart = async (spec: LaunchSpec, files: LaunchFiles, needsNetwork: boolean): Promise<Apart> => {
  try {
    if (!forbidden)
      return { launched: await launch({ ...spec, namespaces: namespaces(needsNetwork) }, files), apart: true }
  } catch (error) {
    if (!(error instanceof WingError && error.code.startsWith('namespace_'))) throw error
    forbidden = true
  }
  return { launched: await launch(spec, files), apart: false }
}

/** Makes what both processes of a machine have in common. */
const confined = (spec: MachineSpec): Omit<LaunchSpec, 'argv' | 'exe' | 'env'> => ({
  cwd: '/',
  umask: 0o077,
  no_new_privs: true,
  capabilities: 'drop',
  cgroups: spec.cgroups,
  rlimits: { core: [0, 0], nofile: [4096, 4096] },
  ...(spec.jail ? { uid: spec.jail.uid, gid: spec.jail.gid, groups: spec.jail.groups } : {}),
})

/** Starts a machine that boots, or one made of what was saved. @throws `hypervisor_unavailable`, `machine_failed` */
const start = async (
  options: QemuOptions,
  spec: MachineSpec,
  from: Saved | undefined,
  signal: AbortSignal,
): Promise<Machine> => {
  const fds: number[] = []
  const own = (fd: number): number => {
    fds.push(fd)
    return fd
  }
  const started: Launched[] = []
  try {
    const shape = shapeOf(options, spec)
    const hasUserNetwork = spec.nics.some(({ kind }) => kind === 'user')
    const saved = from && (await readState(from, shape))
    const [vhostQemu, vhostBackend] = socketPair()
    own(vhostQemu)
    own(vhostBackend)
    // The folder as a descriptor: those above it need not be open to the user that the machine runs as.
    const folder = own(openSync(spec.folder, open_.O_RDONLY | open_.O_DIRECTORY))
    const socket = (name: string) => own(unixListen(join(spec.folder, name), { mode: 0o600 }))
    const vsock = socket(FILE.vsock)
    const qmp = socket(FILE.qmp)
    const serial = socket(FILE.console)
    const qtest = socket(FILE.qtest)
    const devices = own(openSync(join(spec.folder, FILE.devices), 'w', 0o600))
    const consoleLog = own(openSync(spec.consoleLog, 'a', 0o600))
    const vmmLog = own(openSync(spec.vmmLog, 'a', 0o600))
    const kernel = own(openSync(spec.kernel, 'r'))
    const initramfs = own(openSync(spec.initramfs, 'r'))
    const disks = spec.disks.map((disk) => own(openSync(disk.path, disk.readOnly ? 'r' : 'r+')))
    const state = from && own(openSync(`/proc/self/fd/${from.state}`, 'r')) // with a position of its own

    const given = new Inherited(FD)
    given.name('qmp', qmp)
    given.name('console', serial)
    given.name('consoleLog', consoleLog)
    given.name('vhost', vhostQemu)
    given.name('kernel', kernel)
    given.name('initramfs', initramfs)
    given.name('qtest', qtest)
    given.name('devices', devices)
    if (state !== undefined) given.name('state', state)
    const diskFds = given.list(disks)
    const tapFds = spec.nics.map((nic) =>
      nic.kind === 'tap' ? given.list(nic.open(queuesOf(spec.vcpus)).map(own)) : [],
    )

    const mark = { [MARK]: spec.mark }
    const backend = launchApart(
      {
        ...confined(spec),
        env: mark,
        exe: { fd: embedded('wing').fd },
        argv: [
          'wing',
          'vsock',
          '--cid',
          String(spec.cid),
          '--vhost-fd',
          '3',
          '--listen-fd',
          '4',
          '--connect-prefix',
          `/proc/self/fd/5/${FILE.vsock}`,
          ...(saved ? ['--restored'] : []),
        ],
      },
      {
        stdout: vmmLog,
        stderr: vmmLog,
        fds: [
          [vhostBackend, 3],
          [vsock, 4],
          [folder, 5],
        ],
        signal,
      },
      false,
    )
    const main = launchApart(
      {
        ...confined(spec),
        env: { ...mark, [SHAPE_VARIABLE]: JSON.stringify(shape) },
        exe: options.program,
        argv: argv(options, spec, { disks: diskFds, taps: tapFds, restored: saved !== undefined }),
      },
      {
        stdout: vmmLog,
        stderr: vmmLog,
        signal,
        fds: given.fds,
      },
      hasUserNetwork, // the user network is made of sockets of the host's
    )
    for (const one of await Promise.allSettled([main, backend]))
      if (one.status === 'fulfilled') started.push(one.value.launched)
    const { launched: vmm, apart } = await main
    const { launched: helper, apart: helperApart } = await backend
    const identity: MachineIdentity = {
      bootId: bootId(),
      folder: spec.folder,
      uuid: spec.uuid,
      process: { pid: vmm.pid, startTime: vmm.startTime },
      helpers: [{ pid: helper.pid, startTime: helper.startTime }],
    }
    // A QEMU that does not like its arguments, or what it is to load, ends.
    const orEnd = <T>(work: Promise<T>): Promise<T> =>
      Promise.race([
        work,
        vmm.exited.then((exit) => {
          throw new Error(`it ${sayExit(exit)}`)
        }),
      ])
    const control = await orEnd(Qmp.connect(join(spec.folder, FILE.qmp), signal))
    if (from && saved) await orEnd(load(control, identity, from, saved, signal))
    // The user network reads /etc/resolv.conf.
    const isBare = apart && !hasUserNetwork && (await emptyRoot(vmm, vmmLog, signal))
    const walls = [
      ...commonWalls(spec),
      ...(apart && helperApart ? (['namespaces'] as const) : []),
      ...(isBare ? (['empty-root'] as const) : []),
      'seccomp' as const,
    ]
    return new QemuMachine({ ...identity, walls }, control, vmm, [helper], spec.consoleLog)
  } catch (error) {
    for (const one of started) {
      pidfdSignal(one.pidfd, SIGKILL)
      await one.exited
      closeFd(one.pidfd)
    }
    if (signal.aborted) throw error
    const said = started.length > 0 ? lastBytes(spec.vmmLog, 2000).trim() : ''
    const why = messageOf(error)
    const program = !(error instanceof Error && 'syscall' in error && error.syscall === 'open') // of a file that is not there the machine is to blame
    if (program && /exec_missing|not found|no such file/i.test(why) && !said)
      throw hypervisorUnavailable({ hypervisor: 'qemu', reason: `${options.program}: ${why}` }, error)
    throw machineFailed(
      { hypervisor: 'qemu', reason: said === '' ? why : `${why}: ${said.split('\n').slice(-3).join(' ')}` },
      error,
    )
  } finally {
    for (const fd of fds) closeSync(fd)
  }
}

/**
 * Takes the file system away from a QEMU that runs: it has only descriptors from now on. Where that fails, the log of
 * the vm says so.
 */
const emptyRoot = async (vmm: Launched, vmmLog: number, signal: AbortSignal): Promise<boolean> => {
  try {
    await wing(['bare', '--pid-fd', '4'], { fds: [[vmm.pidfd, 4]], signal })
    return true
  } catch (error) {
    if (!(error instanceof WingError)) throw error
    writeSync(vmmLog, `aerie: QEMU keeps its file system: ${[error.message, ...error.chain].join(': ')}\n`)
    return false
  }
}

/** Makes a machine that waits into the one that was saved, paused. */
const load = async (
  control: Qmp,
  identity: MachineIdentity,
  from: Saved,
  saved: Trailer,
  signal: AbortSignal,
): Promise<void> => {
  const version = sayVersion(await control.call('query-version', {}, QemuVersion, signal))
  if (version !== saved.qemu) throw new Error(`it was saved by QEMU ${saved.qemu}, this is ${version}`)
  const bytes = saved.shape.memoryMib * 2 ** 20
  if (fstatSync(from.memory).size !== bytes) throw new Error('its saved memory is not whole')
  const memory = openMemory(identity.process.pid, bytes, 'r+')
  try {
    if ((await copyMemory(from.memory, memory, signal)).sum !== saved.memorySum)
      throw new Error('its saved memory is damaged, or of another machine')
  } finally {
    closeSync(memory)
  }

  const loaded = deferred<string>()
  control.on('event', (name, data) => {
    const status = name === 'MIGRATION' ? readEvent(Migration, data)?.status : undefined
    if (status === 'completed' || status === 'failed') loaded.resolve(status)
  })
  control.once('close', () => {
    loaded.reject(new Error('QMP was closed'))
  })
  const capabilities = [{ capability: 'events', state: true }]
  await control.call('migrate-set-capabilities', { capabilities }, Type.Unknown(), signal)
  await control.call('migrate-incoming', { uri: `fd:${FD.state}` }, Type.Unknown(), signal)
  if ((await orAbort(loaded.promise, signal)) !== 'completed') throw new Error('QEMU cannot load it')

  const qtest = await Qtest.connect(join(identity.folder, FILE.qtest), signal)
  try {
    await plugVsock(control, qtest, saved.vsock, signal)
    const reset = await tellReset(qtest, saved.vsock)
    if (reset) writeFileSync(join(identity.folder, FILE.reset), JSON.stringify(reset), { mode: 0o600 })
  } finally {
    qtest.close()
  }
}

const adopt = async (identity: MachineIdentity, signal: AbortSignal): Promise<Machine | undefined> => {
  if (identity.bootId !== bootId()) return undefined
  const main = launchedBefore(identity.process)
  if (!main) return undefined
  const helpers = identity.helpers.flatMap((id) => launchedBefore(id) ?? [])
  try {
    const control = await Qmp.connect(join(identity.folder, FILE.qmp), signal)
    const { UUID } = await control.call('query-uuid', {}, Uuid, signal)
    if (UUID !== identity.uuid) throw new Error('another machine answers')
    const machine = new QemuMachine(identity, control, main, helpers, undefined)
    await machine.readEnd(signal)
    await machine.repair(signal)
    return machine
  } catch (error) {
    // Its process is there and does not answer: ended by whoever asks for `kill`, never mistaken for gone.
    const machine = new QemuMachine(identity, undefined, main, helpers, undefined)
    if (error instanceof QmpBroken) machine.broke(error)
    return machine
  }
}

/**
 * Makes the driver of QEMU: `q35` (its `microvm` hangs at random under TCG), the vsock device by our own vhost-user
 * backend, every file an inherited descriptor: no folder of ours need be open to the user that it runs as.
 *
 * `-action shutdown=pause`: a guest that ends leaves QEMU standing, so an end while no daemon looks is read later;
 * `-no-reboot`: a reboot ends the machine too. A panic arrives as a reset, and the console tells the two apart.
 */
export const driverOf = (options: QemuOptions): HypervisorDriver => ({
  name: 'qemu',
  nics: ['user', 'tap'],
  start: (spec, signal) => start(options, spec, undefined, signal),
  restore: (spec, from, signal) => start(options, spec, from, signal),
  adopt,
})
