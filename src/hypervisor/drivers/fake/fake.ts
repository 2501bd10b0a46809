import { connect } from 'node:net'
import { accessSync, closeSync, fstatSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs'
import { createHash } from 'node:crypto'
import { constants } from 'node:os'
import { join } from 'node:path'
import { Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { deferred, orAbort } from '../../../lib/promise.ts'
import { closeFd } from '../../../linux/fd.ts'
import { MARK } from '../../../linux/marked.ts'
import { pidfdOpen, pidfdSignal } from '../../../linux/pidfd.ts'
import { bootId, startTimeOf } from '../../../linux/proc.ts'
import { unixListen } from '../../../linux/socket.ts'
import { launchedBefore, type Launched } from '../../../linux/spawn.ts'
import type { DriverOffer, End, HypervisorDriver, Machine, MachineIdentity, MachineSpec, Saved } from '../../driver.ts'
import { agentUnavailable, machineFailed } from '../../errors.ts'
import { messageOf } from '../../../lib/thrown.ts'
import { connectVsock } from '../../vsock.ts'

/*
 * A machine without a guest: one process (`guest.ts`, this executable again) that speaks the agent's protocol and runs
 * no command of anybody's. It outlives the daemon, is adopted, ends and is killed as a real one, so what stands above
 * the drivers is tested on it.
 */

/** Gives the command of this executable, or of this source under Bun. */
const command = (): string[] =>
  import.meta.dir.startsWith('/$bunfs')
    ? [process.execPath]
    : [process.execPath, join(import.meta.dir, '../../../main.ts')]

/** The most bytes of a saved file: the guest's memory as text, and beside it whose it is and its digest. */
const MEMORY_MAX = 16 * 2 ** 20
const SavedText = Type.Object({ shape: Type.String(), memory: Type.String() })
/** What was saved of machines without cards stays readable: releases that knew none wrote no part of them. */
const shapeOf = (spec: Pick<MachineSpec, 'vcpus' | 'memoryMib' | 'disks' | 'nics'>): string =>
  [
    spec.vcpus,
    spec.memoryMib,
    spec.disks.map((disk) => disk.serial),
    ...(spec.nics.length === 0 ? [] : [spec.nics.map((nic) => nic.kind)]),
  ].join(':')

const start = (spec: MachineSpec, signal: AbortSignal): Promise<Machine> => launch(spec, undefined, signal)

const restore = async (spec: MachineSpec, from: Saved, signal: AbortSignal): Promise<Machine> => {
  const refuse = (reason: string, cause?: unknown) => machineFailed({ hypervisor: 'fake', reason }, cause)
  const state = readAll(from.state)
  const memory = readAll(from.memory)
  let saved: unknown
  try {
    saved = JSON.parse(state)
  } catch (error) {
    throw refuse('the state is not whole', error)
  }
  if (!Value.Check(SavedText, saved)) throw refuse("the state is none of this driver's")
  if (saved.shape !== shapeOf(spec)) throw refuse(`it was saved of another machine (${saved.shape})`)
  if (createHash('sha256').update(memory).digest('hex') !== saved.memory) throw refuse('the memory is not whole')
  return await launch(spec, memory, signal)
}

/** Reads a file from its beginning, wherever its position is. */
const readAll = (fd: number): string => {
  const { size } = fstatSync(fd)
  if (size > MEMORY_MAX) throw machineFailed({ hypervisor: 'fake', reason: 'what was saved is too large' })
  const bytes = Buffer.alloc(size)
  return bytes.toString('utf8', 0, readSync(fd, bytes, 0, size, 0))
}

const launch = async (spec: MachineSpec, saved: string | undefined, signal: AbortSignal): Promise<Machine> => {
  const log = openSync(spec.vmmLog, 'a', 0o600)
  const sockets: number[] = []
  const taps: number[] = []
  try {
    signal.throwIfAborted()
    for (const path of [spec.kernel, spec.initramfs, ...spec.disks.map((disk) => disk.path)]) expectFile(path)
    // Ready to be connected to before the machine runs, as QEMU's are: what asks waits in the socket, and nobody polls.
    for (const name of ['vsock', 'console.sock', 'control.sock'])
      sockets.push(unixListen(join(spec.folder, name), { mode: 0o600 }))
    for (const nic of spec.nics) if (nic.kind === 'tap') taps.push(...nic.open(1))
    const child = Bun.spawn(
      [
        ...command(),
        'fake-machine',
        JSON.stringify({
          folder: spec.folder,
          uuid: spec.uuid,
          consoleLog: spec.consoleLog,
          shape: shapeOf(spec),
          ...(saved !== undefined && { saved }),
        }),
      ],
      { stdio: ['ignore', log, log, ...sockets, ...taps], env: { [MARK]: spec.mark }, detached: true },
    )
    child.unref()
    const pidfd = pidfdOpen(child.pid)
    const startTime = startTimeOf(child.pid) ?? ''
    const held: Launched = {
      pid: child.pid,
      startTime,
      pidfd,
      exited: child.exited.then((code) => ({ code, signal: null })),
    }
    const machine = new FakeMachine(
      { bootId: bootId(), folder: spec.folder, uuid: spec.uuid, process: { pid: child.pid, startTime }, helpers: [] },
      held,
    )
    try {
      await machine.watch(signal)
      return machine
    } catch (error) {
      await machine.kill()
      if (signal.aborted) throw error
      throw machineFailed({ hypervisor: 'fake', reason: messageOf(error) }, error)
    }
  } finally {
    for (const fd of [log, ...sockets, ...taps]) closeSync(fd)
  }
}

/** Refuses a file that is missing, as a VMM would: this driver boots nothing. @throws `machine_failed` */
const expectFile = (path: string): void => {
  try {
    accessSync(path)
  } catch (error) {
    throw machineFailed({ hypervisor: 'fake', reason: `"${path}" is not there` }, error)
  }
}

const adopt = async (identity: MachineIdentity, signal: AbortSignal): Promise<Machine | undefined> => {
  if (identity.bootId !== bootId()) return undefined
  const held = launchedBefore(identity.process)
  if (!held) return undefined
  const machine = new FakeMachine(identity, held)
  await machine.watch(signal).catch(() => undefined)
  return machine
}

/** A driver whose machines run no guest. */
export const driver: HypervisorDriver = {
  name: 'fake',
  nics: ['user', 'tap'], // nothing goes over them, as there is no guest
  unlimited: true,
  start,
  restore,
  adopt,
}

/** The fake driver, there for whoever asked for it and unheard of by everybody else. */
export const fake: DriverOffer = {
  name: 'fake',
  onRequest: true,
  accelerator: { accelerator: 'none', reason: 'the fake driver runs no guest' },
  find: ({ config }) => (config.hypervisor === 'fake' ? { driver } : undefined),
}

class FakeMachine implements Machine {
  readonly identity: MachineIdentity
  readonly consoleSocket: string
  readonly #held: Launched
  readonly #ended = deferred<End>()
  #killed: Promise<void> | undefined

  constructor(identity: MachineIdentity, held: Launched) {
    this.identity = identity
    this.consoleSocket = join(identity.folder, 'console.sock')
    this.#held = held
    void held.exited.then((exit) => {
      this.#ended.resolve({ reason: 'killed', code: exit.code, message: 'its process ended' })
    })
  }

  get ended(): Promise<End> {
    return this.#ended.promise
  }

  /** Waits until it answers, and hears of its end from then on. */
  async watch(signal: AbortSignal): Promise<void> {
    const uuid = await Promise.race([
      this.#ask('uuid', signal),
      this.#held.exited.then(() => {
        throw new Error('its process ended')
      }),
    ])
    if (uuid !== this.identity.uuid) throw new Error('another machine answers')
    void this.#ask('ended', undefined).then(
      (reason) => {
        this.#ended.resolve({ reason: reason as End['reason'], code: null, message: '' })
      },
      () => undefined,
    )
  }

  #ask(op: string, signal: AbortSignal | undefined): Promise<string> {
    const answer = new Promise<string>((resolve, reject) => {
      const socket = connect(join(this.identity.folder, 'control.sock'))
      let text = ''
      socket.setEncoding('utf8')
      socket.on('data', (part) => {
        text += String(part)
        if (text.includes('\n')) {
          resolve(text.trim())
          socket.destroy()
        }
      })
      socket.on('error', reject)
      socket.on('close', () => {
        reject(agentUnavailable({ reason: 'the machine is not there' }))
      })
      socket.write(`${op}\n`)
      signal?.addEventListener(
        'abort',
        () => {
          socket.destroy()
        },
        { once: true },
      )
    })
    answer.catch(() => undefined)
    return signal ? orAbort(answer, signal) : answer
  }

  connect(port: number, signal: AbortSignal) {
    return connectVsock(join(this.identity.folder, 'vsock'), port, signal)
  }
  async pause(signal: AbortSignal): Promise<void> {
    await this.#ask('pause', signal)
  }
  async resume(signal: AbortSignal): Promise<void> {
    await this.#ask('resume', signal)
  }
  async powerButton(signal: AbortSignal): Promise<void> {
    await this.#ask('button', signal)
  }
  async snapshot(into: Saved, signal: AbortSignal): Promise<void> {
    if ((await this.state(signal)) !== 'paused') throw new Error('it is not paused')
    const [shape, memory] = [await this.#ask('shape', signal), await this.#ask('save', signal)]
    writeSync(into.memory, memory, 0)
    writeSync(into.state, JSON.stringify({ shape, memory: createHash('sha256').update(memory).digest('hex') }), 0)
    for (const fd of [into.memory, into.state]) fsyncSync(fd)
  }

  async state(signal: AbortSignal): Promise<'running' | 'paused' | 'ended'> {
    return (await this.#ask('state', signal)) as 'running'
  }

  kill(): Promise<void> {
    return (this.#killed ??= (async () => {
      pidfdSignal(this.#held.pidfd, constants.signals.SIGKILL)
      await this.#held.exited
      closeFd(this.#held.pidfd)
    })())
  }
}
