import { closeSync, constants as open_, openSync } from 'node:fs'
import { join } from 'node:path'
import { constants } from 'node:os'
import { embedded } from '../../linux/embedded.ts'
import { closeFd } from '../../linux/fd.ts'
import { bootId } from '../../linux/proc.ts'
import { holdProcess, pidfdSignal, whenExited, type Exit } from '../../linux/pidfd.ts'
import { socketPair, unixListen } from '../../linux/socket.ts'
import { launch, type Launched, type LaunchSpec } from '../../linux/spawn.ts'
import { deferred, sleep } from '../../lib/wait.ts'
import { lastBytes, panicIn } from '../console-log.ts'
import type { End, EndReason, HypervisorDriver, Machine, MachineIdentity, MachineSpec, ProcessId } from '../driver.ts'
import { hypervisorUnavailable, machineFailed } from '../errors.ts'
import { connectVsock } from '../vsock.ts'
import { Qmp } from './qmp.ts'

export interface QemuOptions {
  /** Absolute path of the program. */
  readonly program: string
  readonly accelerator: 'kvm' | 'tcg'
}

const SIGKILL = constants.signals.SIGKILL
/** Of QEMU's cache of translated code, MiB: its default is a gigabyte. */
const TCG_CACHE_MIB = 128
/** How much later than QEMU its backend may be seen to end. */
const HELPER_MS = 1000
/** How long an ended process may take to go. */
const GONE_MS = 10_000

/** What QEMU inherits, by its own number. */
const FD = { qmp: 3, console: 4, consoleLog: 5, vhost: 6, kernel: 7, initramfs: 8, disks: 9 } as const

/**
 * QEMU as a driver: `q35` (its `microvm` hangs at random under TCG), the vsock device by our own vhost-user backend, every file an
 * inherited descriptor: no folder of ours need be open to the user that it runs as.
 *
 * `-action shutdown=pause`: a guest that ends leaves QEMU standing, so an end while no daemon looks is read later; `-no-reboot`: a reboot
 * ends the machine too. A panic arrives as a reset, and the console tells the two apart.
 */
export const qemu = (options: QemuOptions): HypervisorDriver => ({
  name: 'qemu',
  start: (spec, signal) => start(options, spec, signal),
  adopt,
})

/**
 * TCG runs a "rep movsb" byte by byte. A guest that is told that those are fast (erms, fsrm) copies and clears every page with them: twice the
 * time of a copy by words.
 */
const TCG_CPU = 'max,erms=off,fsrm=off'

const argv = (options: QemuOptions, spec: MachineSpec): string[] => {
  const kvm = options.accelerator === 'kvm'
  const disks = spec.disks.flatMap((disk, index) => [
    '-add-fd', `fd=${FD.disks + index},set=${index + 10}`,
    '-blockdev', JSON.stringify({ driver: 'raw', 'node-name': `d${index}`, 'read-only': disk.readOnly, discard: 'unmap',
      file: { driver: 'file', filename: `/dev/fdset/${index + 10}`, aio: 'threads', locking: disk.readOnly ? 'off' : 'auto', 'read-only': disk.readOnly, discard: 'unmap' } }),
    '-device', `virtio-blk-pci,drive=d${index},serial=${disk.serial}`])
  return [
    'qemu-system-x86_64', '-no-user-config', '-nodefaults', '-display', 'none', '-no-reboot', '-action', 'reboot=shutdown,shutdown=pause',
    '-uuid', spec.uuid, '-accel', kvm ? 'kvm' : `tcg,thread=multi,tb-size=${TCG_CACHE_MIB}`, '-cpu', kvm ? 'host,vmx=off,svm=off' : TCG_CPU,
    '-M', 'q35,memory-backend=m0,usb=off,smm=off,vmport=off,graphics=off', '-object', `memory-backend-memfd,id=m0,size=${spec.memoryMib}M,share=on`,
    '-m', `${spec.memoryMib}M`, '-smp', String(spec.vcpus),
    '-kernel', `/proc/self/fd/${FD.kernel}`, '-initrd', `/proc/self/fd/${FD.initramfs}`, '-append', spec.cmdline,
    '-chardev', `socket,id=qmp,fd=${FD.qmp},server=on,wait=off`, '-mon', 'chardev=qmp,mode=control',
    '-add-fd', `fd=${FD.consoleLog},set=1`,
    '-chardev', `socket,id=con,fd=${FD.console},server=on,wait=off,logfile=/dev/fdset/1,logappend=on`, '-serial', 'chardev:con',
    '-chardev', `socket,id=vs,fd=${FD.vhost}`, '-device', 'vhost-user-vsock-pci,chardev=vs',
    '-object', 'rng-builtin,id=rng0', '-device', 'virtio-rng-pci,rng=rng0',
    ...disks,
    ...(spec.nic ? ['-netdev', 'user,id=n0', '-device', `virtio-net-pci,netdev=n0,mac=${spec.nic.mac},romfile=`] : []),
    '-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny',
  ]
}

/** What both processes of a machine have in common. */
const confined = (spec: MachineSpec): Omit<LaunchSpec, 'argv' | 'exe'> => ({
  env: { AERIE_MACHINE: spec.mark }, cwd: '/', umask: 0o077, no_new_privs: true, capabilities: 'drop', cgroups: spec.cgroups,
  rlimits: { core: [0, 0], nofile: [4096, 4096] },
  ...(spec.jail ? { uid: spec.jail.uid, gid: spec.jail.gid, groups: spec.jail.groups } : {}),
})

const start = async (options: QemuOptions, spec: MachineSpec, signal: AbortSignal): Promise<Machine> => {
  const fds: number[] = []
  const own = (fd: number): number => { fds.push(fd); return fd }
  const started: Launched[] = []
  try {
    const [vhostQemu, vhostBackend] = socketPair()
    own(vhostQemu); own(vhostBackend)
    // The folder as a descriptor: those above it need not be open to the user that the machine runs as.
    const folder = own(openSync(spec.folder, open_.O_RDONLY | open_.O_DIRECTORY))
    const vsock = own(unixListen(join(spec.folder, 'vsock'), { mode: 0o600 }))
    const qmp = own(unixListen(join(spec.folder, 'qmp.sock'), { mode: 0o600 }))
    const serial = own(unixListen(join(spec.folder, 'console.sock'), { mode: 0o600 }))
    const consoleLog = own(openSync(spec.consoleLog, 'a', 0o600)), vmmLog = own(openSync(spec.vmmLog, 'a', 0o600))
    const kernel = own(openSync(spec.kernel, 'r')), initramfs = own(openSync(spec.initramfs, 'r'))
    const disks = spec.disks.map((disk) => own(openSync(disk.path, disk.readOnly ? 'r' : 'r+')))

    const backend = launch({ ...confined(spec), exe: { fd: embedded('wing').fd },
      argv: ['wing', 'vsock', '--cid', String(spec.cid), '--vhost-fd', '3', '--listen-fd', '4', '--connect-prefix', '/proc/self/fd/5/vsock'] },
    { stdout: vmmLog, stderr: vmmLog, fds: [[vhostBackend, 3], [vsock, 4], [folder, 5]], signal })
    const main = launch({ ...confined(spec), exe: options.program, argv: argv(options, spec) },
      { stdout: vmmLog, stderr: vmmLog, signal,
        fds: [[qmp, FD.qmp], [serial, FD.console], [consoleLog, FD.consoleLog], [vhostQemu, FD.vhost], [kernel, FD.kernel],
          [initramfs, FD.initramfs], ...disks.map((fd, index) => [fd, FD.disks + index] as const)] })
    for (const one of await Promise.allSettled([main, backend])) if (one.status === 'fulfilled') started.push(one.value)
    const [vmm, helper] = [await main, await backend]
    const identity: MachineIdentity = { bootId: bootId(), folder: spec.folder, uuid: spec.uuid,
      process: { pid: vmm.pid, startTime: vmm.startTime }, helpers: [{ pid: helper.pid, startTime: helper.startTime }] }
    // A QEMU that does not like its arguments ends before it greets.
    const control = await Promise.race([Qmp.connect(join(spec.folder, 'qmp.sock'), signal), vmm.exited.then((exit) => { throw new Error(sayExit(exit)) })])
    return new QemuMachine(identity, control, vmm, [helper], spec.consoleLog)
  } catch (error) {
    for (const one of started) { pidfdSignal(one.pidfd, SIGKILL); await one.exited; closeFd(one.pidfd) }
    if (signal.aborted) throw error
    const said = lastBytes(spec.vmmLog, 2000).trim(), why = error instanceof Error ? error.message : String(error)
    const program = !(error instanceof Error && 'syscall' in error && error.syscall === 'open') // of a file that is not there the machine is to blame
    if (program && /exec_missing|not found|no such file/i.test(why) && !said) throw hypervisorUnavailable({ hypervisor: 'qemu', reason: `${options.program}: ${why}` }, error)
    throw machineFailed({ hypervisor: 'qemu', reason: said === '' ? why : `${why}: ${said.split('\n').slice(-3).join(' ')}` }, error)
  } finally {
    for (const fd of fds) closeSync(fd)
  }
}

const sayExit = (exit: Exit): string => exit.signal === null ? `it ended with code ${exit.code ?? '?'}` : `it was killed by signal ${exit.signal}`

/** A process by its identity: undefined where it is gone or its number belongs to another now. */
const hold = (id: ProcessId): Launched | undefined => {
  const pidfd = holdProcess(id)
  return pidfd === undefined ? undefined : { ...id, pidfd, exited: whenExited(pidfd) }
}

const adopt = async (identity: MachineIdentity, signal: AbortSignal): Promise<Machine | undefined> => {
  if (identity.bootId !== bootId()) return undefined
  const main = hold(identity.process)
  if (!main) return undefined
  const helpers = identity.helpers.flatMap((id) => hold(id) ?? [])
  try {
    const control = await Qmp.connect(join(identity.folder, 'qmp.sock'), signal)
    const uuid = ((await control.call('query-uuid', {}, signal)) as { UUID?: string }).UUID
    if (uuid !== identity.uuid) throw new Error('another machine answers')
    const machine = new QemuMachine(identity, control, main, helpers, undefined)
    await machine.readEnd(signal)
    return machine
  } catch {
    // Its process is there and does not answer: ended by whoever asks for `kill`, never mistaken for gone.
    return new QemuMachine(identity, undefined, main, helpers, undefined)
  }
}

class QemuMachine implements Machine {
  readonly identity: MachineIdentity
  readonly consoleSocket: string
  readonly #main: Launched
  readonly #helpers: readonly Launched[]
  readonly #ended = deferred<End>()
  #control: Qmp | undefined
  #killed: Promise<void> | undefined
  readonly #console: string | undefined

  constructor(identity: MachineIdentity, control: Qmp | undefined, main: Launched, helpers: readonly Launched[], consoleLog: string | undefined) {
    this.identity = identity
    this.consoleSocket = join(identity.folder, 'console.sock')
    this.#main = main
    this.#helpers = helpers
    this.#console = consoleLog
    this.#listen(control)
    this.#watchHelpers()
    void main.exited.then((exit) => {
      this.#ended.resolve({ reason: 'killed', code: exit.code, message: `QEMU ${sayExit(exit).replace(/^it /, '')}` })
    })
  }

  get ended(): Promise<End> { return this.#ended.promise }

  /** Without its vsock backend a guest cannot be reached: that is the end of the machine. The backend also ends right after QEMU. */
  #watchHelpers(): void {
    for (const helper of this.#helpers) {
      void helper.exited.then(() => sleep(HELPER_MS)).then(() => {
        this.#ended.resolve({ reason: 'failed', code: null, message: 'its vsock backend ended' })
      })
    }
  }

  #listen(control: Qmp | undefined): void {
    this.#control = control
    control?.on('event', ({ event, data }) => {
      if (event === 'SHUTDOWN') this.#end(String(data['reason'] ?? ''))
      else if (event === 'GUEST_PANICKED') this.#ended.resolve({ reason: 'panic', code: null, message: '' })
    })
    control?.once('close', () => { if (this.#control === control) this.#control = undefined })
  }

  /** QEMU's ShutdownCause (qapi/run-state.json) in our words. */
  #end(cause: string): void {
    const panic = this.#console === undefined ? undefined : panicIn(lastBytes(this.#console, 65_536))
    const reasons: Readonly<Record<string, EndReason>> = { 'guest-shutdown': 'poweroff', 'guest-reset': 'reboot', 'subsystem-reset': 'reboot', 'guest-panic': 'panic' }
    const reason = panic !== undefined && cause !== 'guest-shutdown' ? 'panic' : reasons[cause] ?? 'killed'
    this.#ended.resolve({ reason, code: null, message: reason === 'panic' ? panic ?? '' : '' })
  }

  /** After adoption: whether the guest ended while nobody looked. */
  async readEnd(signal: AbortSignal): Promise<void> {
    const { status } = await this.#call('query-status', signal) as { status?: string }
    if (status === 'shutdown') this.#end('guest-shutdown')
    else if (status === 'guest-panicked') this.#end('guest-panic')
  }

  async #call(command: string, signal: AbortSignal): Promise<unknown> {
    if (!this.#control) this.#listen(await Qmp.connect(join(this.identity.folder, 'qmp.sock'), signal))
    if (!this.#control) throw new Error('QMP was closed')
    return await this.#control.call(command, {}, signal)
  }

  connect(port: number, signal: AbortSignal) { return connectVsock(join(this.identity.folder, 'vsock'), port, signal) }
  async pause(signal: AbortSignal): Promise<void> { await this.#call('stop', signal) }
  async resume(signal: AbortSignal): Promise<void> { await this.#call('cont', signal) }
  async powerButton(signal: AbortSignal): Promise<void> { await this.#call('system_powerdown', signal) }

  async state(signal: AbortSignal): Promise<'running' | 'paused' | 'ended'> {
    const { status } = await this.#call('query-status', signal) as { status?: string }
    return status === 'running' ? 'running' : status === 'shutdown' || status === 'guest-panicked' ? 'ended' : 'paused'
  }

  kill(): Promise<void> { return this.#killed ??= this.#killAll() }

  async #killAll(): Promise<void> {
    const all = [this.#main, ...this.#helpers]
    for (const one of all) pidfdSignal(one.pidfd, SIGKILL)
    const gone = await Promise.race([Promise.all(all.map((one) => one.exited)).then(() => true), sleep(GONE_MS).then(() => false)])
    this.#control?.close()
    if (!gone) throw machineFailed({ hypervisor: 'qemu', reason: 'a killed process does not go away' })
    for (const one of all) closeFd(one.pidfd)
  }
}
