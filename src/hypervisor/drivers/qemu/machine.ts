import {
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { Type, type Static, type TSchema } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { sayExit } from '../../../linux/pidfd.ts'
import { environmentOf } from '../../../linux/proc.ts'
import type { Launched } from '../../../linux/spawn.ts'
import { deferred, sleep } from '../../../lib/promise.ts'
import { lastBytes, panicIn } from '../../console-log.ts'
import type { End, EndReason, Halt, Machine, MachineIdentity, Saved } from '../../driver.ts'
import { connectVsock } from '../../vsock.ts'
import { endProcesses } from '../end-processes.ts'
import { punchHole } from '../../../linux/file.ts'
import { fsync } from '../../../linux/positional.ts'
import { DEVICES_SET, FD } from './argv.ts'
import { copyMemory, openMemory } from './memory.ts'
import { QemuVersion, readDevices, sayVersion, Shape, shapeOfToday, writeState } from './saved.ts'
import {
  eject,
  PendingReset,
  plugQuietly,
  readRegisters,
  resetTaken,
  VirtioRegisters,
  VSOCK_PLUG,
  writeRegisters,
} from './vsock-device.ts'
import { Qmp, QmpBroken, readEvent } from './qmp.ts'
import { Qtest } from './qtest.ts'

/** How much later than QEMU its backend may be seen to end. */
const HELPER_MS = 1000
/** The time for what must be finished once it has begun, ms, whoever has given up meanwhile. */
const FINISH_MS = 10_000
/** A device that was taken out holds its socket for a moment; each refusal waits for that. */
const PLUG_TRIES = 10

/** The answer to `query-fdsets`. */
const FdSets = Type.Array(Type.Object({ 'fdset-id': Type.Integer() }), { maxItems: 1000 })

/** The environment variable of QEMU's that says what it was started as: for a daemon that adopts it. */
export const SHAPE_VARIABLE = 'AERIE_SHAPE'

/** Files of a machine's folder; a VMM that was taken over cannot make or change one there, `devices` excepted. */
export const FILE = {
  qmp: 'qmp.sock',
  qtest: 'qtest.sock',
  console: 'console.sock',
  vsock: 'vsock',
  devices: 'devices',
  unplugged: 'vsock.json',
  reset: 'reset.json',
} as const

const Word = Type.String({ maxLength: 128 })
/** The event SHUTDOWN of qapi/run-state.json: the cause of a shutdown, and what the machine does now. */
const Shutdown = Type.Object({ reason: Word })
const Status = Type.Object({ status: Word })
/**
 * The event BLOCK_IO_ERROR of qapi/block-core.json: a request to a disk failed on this host. `stop`: the guest waits
 * until it is told to go on.
 */
const BlockIoError = Type.Object({
  action: Word,
  nospace: Type.Optional(Type.Boolean()),
  reason: Type.String({ maxLength: 1000 }),
})

/** Changes the host's side of the vsock device, in the machine that `control` speaks to. */
export const plugVsock = async (
  control: Qmp,
  qtest: Qtest,
  registers: VirtioRegisters,
  signal: AbortSignal,
): Promise<void> => {
  await plugQuietly(qtest, async () => {
    for (let tries = 1; ; tries++) {
      try {
        await control.call('device_add', VSOCK_PLUG, Type.Unknown(), signal)
        return
      } catch (error) {
        const why = error instanceof Error ? error.message : ''
        if (/duplicate/i.test(why)) return // put back already, by a daemon that did not come to the registers
        if (!/in use/.test(why) || tries === PLUG_TRIES) throw error
      }
    }
  })
  await writeRegisters(qtest, registers)
}

/** One QEMU process with its helpers. */
export class QemuMachine implements Machine {
  readonly identity: MachineIdentity
  readonly consoleSocket: string
  readonly #main: Launched
  readonly #helpers: readonly Launched[]
  readonly #ended = deferred<End>()
  #control: Qmp | undefined
  #killed: Promise<void> | undefined
  #halted: Halt | undefined
  #heardHalt: (halt: Halt | undefined) => void = () => undefined
  readonly #console: string | undefined
  /** Moves of the processors and saves, one after the other: nothing may run while it is saved. */
  #turn: Promise<unknown> = Promise.resolve()

  constructor(
    identity: MachineIdentity,
    control: Qmp | undefined,
    main: Launched,
    helpers: readonly Launched[],
    consoleLog: string | undefined,
  ) {
    this.identity = identity
    this.consoleSocket = join(identity.folder, FILE.console)
    this.#main = main
    this.#helpers = helpers
    this.#console = consoleLog
    this.#listen(control)
    this.#watchHelpers()
    void main.exited.then((exit) => {
      this.#ended.resolve({ reason: 'killed', code: exit.code, message: `QEMU ${sayExit(exit)}` })
    })
  }

  get ended(): Promise<End> {
    return this.#ended.promise
  }

  /**
   * Ends the machine when its vsock backend ends, without which the guest cannot be reached. It also ends right after
   * QEMU.
   */
  #watchHelpers(): void {
    for (const helper of this.#helpers) {
      void helper.exited
        .then(() => sleep(HELPER_MS))
        .then(() => {
          this.#ended.resolve({ reason: 'failed', code: null, message: 'its vsock backend ended' })
        })
    }
  }

  #listen(control: Qmp | undefined): void {
    this.#control = control
    control?.on('event', (name, data) => {
      this.#hear(name, data)
    })
    control?.once('close', (broken) => {
      if (this.#control === control) this.#control = undefined
      if (broken) this.broke(broken)
    })
  }

  #hear(name: string, data: unknown): void {
    if (name === 'SHUTDOWN') this.#end(readEvent(Shutdown, data)?.reason ?? '')
    else if (name === 'GUEST_PANICKED') this.#ended.resolve({ reason: 'panic', code: null, message: '' })
    else if (name === 'BLOCK_IO_ERROR') {
      const error = readEvent(BlockIoError, data)
      if (error?.action === 'stop') this.#halt({ noSpace: error.nospace === true, message: error.reason })
    } else if (name === 'RESUME') this.#halt(undefined)
  }

  /** Takes the machine for ended: what answers in its place is not QEMU any more. */
  broke(error: QmpBroken): void {
    this.#ended.resolve({ reason: 'failed', code: null, message: error.message })
  }

  onHalt(heard: (halt: Halt | undefined) => void): void {
    this.#heardHalt = heard
    if (this.#halted) heard(this.#halted)
  }

  #halt(halt: Halt | undefined): void {
    if (halt === this.#halted) return
    const first = (this.#halted === undefined) !== (halt === undefined)
    this.#halted = halt
    if (first) this.#heardHalt(halt) // many requests fail at once, and the guest halts once
  }

  /** Ends the machine by QEMU's ShutdownCause (qapi/run-state.json). */
  #end(cause: string): void {
    const panic = this.#panic()
    const reasons: Readonly<Record<string, EndReason>> = {
      'guest-shutdown': 'poweroff',
      'guest-reset': 'reboot',
      'subsystem-reset': 'reboot',
      'guest-panic': 'panic',
    }
    const reason = panic !== undefined && cause !== 'guest-shutdown' ? 'panic' : (reasons[cause] ?? 'killed')
    this.#ended.resolve({ reason, code: null, message: reason === 'panic' ? (panic ?? '') : '' })
  }

  #panic(): string | undefined {
    if (this.#console === undefined) return undefined
    try {
      return panicIn(lastBytes(this.#console, 65_536))
    } catch {
      return undefined // its vm has been deleted
    }
  }

  /** Reads, after an adoption, whether the guest ended or was halted while nobody looked. */
  async readEnd(signal: AbortSignal): Promise<void> {
    const { status } = await this.#call('query-status', Status, signal)
    if (status === 'shutdown') this.#end('guest-shutdown')
    else if (status === 'guest-panicked') this.#end('guest-panic')
    else if (status === 'io-error') this.#halt({ noSpace: true, message: 'its disk could not be written' })
  }

  #file(name: string): string {
    return join(this.identity.folder, name)
  }

  async #reach(signal: AbortSignal): Promise<Qmp> {
    try {
      if (!this.#control) this.#listen(await Qmp.connect(this.#file(FILE.qmp), signal))
    } catch (error) {
      if (error instanceof QmpBroken) this.broke(error)
      throw error
    }
    if (!this.#control) throw new Error('QMP was closed')
    return this.#control
  }

  async #call<T extends TSchema>(
    command: string,
    shape: T,
    signal: AbortSignal,
    args: Readonly<Record<string, unknown>> = {},
  ): Promise<Static<T>> {
    return await (await this.#reach(signal)).call(command, args, shape, signal)
  }

  async #do(command: string, signal: AbortSignal, args: Readonly<Record<string, unknown>> = {}): Promise<void> {
    await this.#call(command, Type.Unknown(), signal, args)
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work)
    this.#turn = result.catch(() => undefined)
    return result
  }

  connect(port: number, signal: AbortSignal) {
    return connectVsock(this.#file(FILE.vsock), port, signal)
  }
  pause(signal: AbortSignal): Promise<void> {
    return this.#inTurn(async () => {
      await this.#do('stop', signal)
    })
  }
  resume(signal: AbortSignal): Promise<void> {
    return this.#inTurn(async () => {
      await this.#do('cont', signal)
      try {
        await this.#untilReached(signal)
      } catch (error) {
        await this.#do('stop', AbortSignal.timeout(FINISH_MS)).catch(() => undefined)
        throw error
      }
    })
  }

  /** Waits until the guest of a restored machine has heard of it, for what connects before would be cut. */
  async #untilReached(signal: AbortSignal): Promise<void> {
    const path = this.#file(FILE.reset)
    if (!existsSync(path)) return
    const reset: unknown = JSON.parse(readFileSync(path, 'utf8'))
    if (Value.Check(PendingReset, reset)) {
      const qtest = await Qtest.connect(this.#file(FILE.qtest), signal)
      try {
        await resetTaken(qtest, reset, signal)
      } finally {
        qtest.close()
      }
    }
    rmSync(path)
  }

  async powerButton(signal: AbortSignal): Promise<void> {
    await this.#do('system_powerdown', signal)
  }

  async state(signal: AbortSignal): Promise<'running' | 'paused' | 'ended'> {
    const { status } = await this.#call('query-status', Status, signal)
    return status === 'running' ? 'running' : status === 'shutdown' || status === 'guest-panicked' ? 'ended' : 'paused'
  }

  snapshot(into: Saved, signal: AbortSignal): Promise<void> {
    return this.#inTurn(() => this.#save(into, signal))
  }

  async #save(into: Saved, signal: AbortSignal): Promise<void> {
    const { pid } = this.identity.process
    if ((await this.state(signal)) !== 'paused') throw new Error('it is not paused')
    const shape = this.#shape()
    const bytes = shape.memoryMib * 2 ** 20
    const memory = openMemory(pid, bytes, 'r')
    try {
      const qemu = sayVersion(await this.#call('query-version', QemuVersion, signal))
      const { devices, vsock } = await this.#saveDevices(signal)
      ftruncateSync(into.memory, bytes)
      const { sum } = await copyMemory(memory, into.memory, signal)
      await fsync(into.memory)
      await writeState(into.state, devices, { qemu, shape, memorySum: sum, vsock })
    } finally {
      closeSync(memory)
    }
  }

  #shape(): Shape {
    const text = environmentOf(this.identity.process.pid, SHAPE_VARIABLE)
    const shape = text === undefined ? undefined : shapeOfToday(JSON.parse(text))
    if (!Value.Check(Shape, shape)) throw new Error('it was started by an older aerie')
    return shape
  }

  /** The name under which QEMU writes its devices, and the position in the file from which on it does. */
  async #devicesFile(signal: AbortSignal): Promise<{ readonly filename: string; readonly from: number }> {
    const sets = await this.#call('query-fdsets', FdSets, signal)
    // One of an older aerie has no such set, but a /proc, by which it opens the file anew and empties it (open(2),
    // O_TRUNC).
    if (!sets.some((set) => set['fdset-id'] === DEVICES_SET))
      return { filename: `/proc/self/fd/${FD.devices}`, from: 0 }
    // QEMU goes on writing where it stopped the last time: it has one open file, and its position.
    return { filename: `/dev/fdset/${DEVICES_SET}`, from: statSync(this.#file(FILE.devices)).size }
  }

  /** What has begun here is finished, or the guest would go on without its vsock device. */
  async #saveDevices(signal: AbortSignal): Promise<{ readonly devices: Buffer; readonly vsock: VirtioRegisters }> {
    signal.throwIfAborted()
    const finish = AbortSignal.timeout(FINISH_MS)
    const qtest = await Qtest.connect(this.#file(FILE.qtest), finish)
    const { filename, from } = await this.#devicesFile(signal)
    try {
      const vsock = await readRegisters(qtest)
      if (!Value.Check(VirtioRegisters, vsock)) throw new Error('its vsock device cannot be read')
      writeFileSync(this.#file(FILE.unplugged), JSON.stringify(vsock), { mode: 0o600 })
      try {
        await eject(qtest)
        await this.#do('xen-save-devices-state', finish, { filename, live: false })
      } finally {
        await plugVsock(await this.#reach(finish), qtest, vsock, finish)
        rmSync(this.#file(FILE.unplugged))
      }
      const file = openSync(this.#file(FILE.devices), 'r+')
      try {
        const devices = await readDevices(file, from)
        punchHole(file, 0, fstatSync(file).size)
        return { devices, vsock }
      } finally {
        closeSync(file)
      }
    } finally {
      qtest.close()
    }
  }

  /** Puts the vsock device back, after an adoption, where a daemon that ended in the middle of a save left it out. */
  async repair(signal: AbortSignal): Promise<void> {
    const path = this.#file(FILE.unplugged)
    if (!existsSync(path)) return
    if ((await this.state(signal)) === 'paused') {
      const registers: unknown = JSON.parse(readFileSync(path, 'utf8'))
      if (Value.Check(VirtioRegisters, registers)) {
        const qtest = await Qtest.connect(this.#file(FILE.qtest), signal)
        try {
          await plugVsock(await this.#reach(signal), qtest, registers, signal)
        } finally {
          qtest.close()
        }
      }
    }
    rmSync(path)
  }

  kill(): Promise<void> {
    return (this.#killed ??= this.#killAll())
  }

  async #killAll(): Promise<void> {
    try {
      await endProcesses('qemu', [this.#main, ...this.#helpers])
    } finally {
      this.#control?.close()
    }
  }
}
