import { connect } from 'node:net'
import { accessSync, closeSync, openSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { deferred, orAbort } from '../../lib/wait.ts'
import { closeFd } from '../../linux/fd.ts'
import { MARK } from '../../linux/marked.ts'
import { holdProcess, pidfdOpen, pidfdSignal, whenExited, type Exit } from '../../linux/pidfd.ts'
import { bootId, startTimeOf } from '../../linux/proc.ts'
import { unixListen } from '../../linux/socket.ts'
import type { End, HypervisorDriver, Machine, MachineIdentity, MachineSpec, ProcessId } from '../driver.ts'
import { agentUnavailable, machineFailed } from '../errors.ts'
import { connectVsock } from '../vsock.ts'

/*
 * A machine without a guest: one process (`fake-machine.ts`, this executable again) that speaks the agent's protocol and runs no command of
 * anybody's. It outlives the daemon, is adopted, ends and is killed as a real one, so what stands above the drivers is tested on it.
 */

/** This executable, or this source under Bun. */
const command = (): string[] => import.meta.dir.startsWith('/$bunfs') ? [process.execPath] : [process.execPath, join(import.meta.dir, '../../main.ts')]

export const fake = (): HypervisorDriver => ({ name: 'fake', start, adopt })

interface Held extends ProcessId { readonly pidfd: number; readonly exited: Promise<Exit> }

const start = async (spec: MachineSpec, signal: AbortSignal): Promise<Machine> => {
  const log = openSync(spec.vmmLog, 'a', 0o600), sockets: number[] = []
  try {
    signal.throwIfAborted()
    for (const path of [spec.kernel, spec.initramfs, ...spec.disks.map((disk) => disk.path)]) expectFile(path)
    // Ready to be connected to before the machine runs, as QEMU's are: what asks waits in the socket, and nobody polls.
    for (const name of ['vsock', 'console.sock', 'control.sock']) sockets.push(unixListen(join(spec.folder, name), { mode: 0o600 }))
    const child = Bun.spawn([...command(), 'fake-machine', JSON.stringify({ folder: spec.folder, uuid: spec.uuid, consoleLog: spec.consoleLog })],
      { stdio: ['ignore', log, log, ...sockets], env: { [MARK]: spec.mark }, detached: true })
    child.unref()
    const pidfd = pidfdOpen(child.pid), startTime = startTimeOf(child.pid) ?? ''
    const held: Held = { pid: child.pid, startTime, pidfd, exited: child.exited.then((code) => ({ code, signal: null })) }
    const machine = new FakeMachine({ bootId: bootId(), folder: spec.folder, uuid: spec.uuid, process: { pid: child.pid, startTime }, helpers: [] }, held)
    try {
      await machine.watch(signal)
      return machine
    } catch (error) {
      await machine.kill()
      if (signal.aborted) throw error
      throw machineFailed({ hypervisor: 'fake', reason: error instanceof Error ? error.message : String(error) }, error)
    }
  } finally { for (const fd of [log, ...sockets]) closeSync(fd) }
}

/** It boots nothing; what a VMM would miss is missed all the same. @throws `machine_failed` */
const expectFile = (path: string): void => {
  try { accessSync(path) } catch (error) { throw machineFailed({ hypervisor: 'fake', reason: `"${path}" is not there` }, error) }
}

const adopt = async (identity: MachineIdentity, signal: AbortSignal): Promise<Machine | undefined> => {
  if (identity.bootId !== bootId()) return undefined
  const pidfd = holdProcess(identity.process)
  if (pidfd === undefined) return undefined
  const machine = new FakeMachine(identity, { ...identity.process, pidfd, exited: whenExited(pidfd) })
  await machine.watch(signal).catch(() => undefined)
  return machine
}

class FakeMachine implements Machine {
  readonly identity: MachineIdentity
  readonly consoleSocket: string
  readonly #held: Held
  readonly #ended = deferred<End>()
  #killed: Promise<void> | undefined

  constructor(identity: MachineIdentity, held: Held) {
    this.identity = identity
    this.consoleSocket = join(identity.folder, 'console.sock')
    this.#held = held
    void held.exited.then((exit) => { this.#ended.resolve({ reason: 'killed', code: exit.code, message: 'its process ended' }) })
  }

  get ended(): Promise<End> { return this.#ended.promise }

  /** Waits until it answers, and hears of its end from then on. */
  async watch(signal: AbortSignal): Promise<void> {
    const uuid = await Promise.race([this.#ask('uuid', signal), this.#held.exited.then(() => { throw new Error('its process ended') })])
    if (uuid !== this.identity.uuid) throw new Error('another machine answers')
    void this.#ask('ended', undefined).then((reason) => { this.#ended.resolve({ reason: reason as End['reason'], code: null, message: '' }) }, () => undefined)
  }

  #ask(op: string, signal: AbortSignal | undefined): Promise<string> {
    const answer = new Promise<string>((resolve, reject) => {
      const socket = connect(join(this.identity.folder, 'control.sock'))
      let text = ''
      socket.setEncoding('utf8')
      socket.on('data', (part) => {
        text += String(part)
        if (text.includes('\n')) { resolve(text.trim()); socket.destroy() }
      })
      socket.on('error', reject)
      socket.on('close', () => { reject(agentUnavailable({ reason: 'the machine is not there' })) })
      socket.write(`${op}\n`)
      signal?.addEventListener('abort', () => { socket.destroy() }, { once: true })
    })
    answer.catch(() => undefined)
    return signal ? orAbort(answer, signal) : answer
  }

  connect(port: number, signal: AbortSignal) { return connectVsock(join(this.identity.folder, 'vsock'), port, signal) }
  async pause(signal: AbortSignal): Promise<void> { await this.#ask('pause', signal) }
  async resume(signal: AbortSignal): Promise<void> { await this.#ask('resume', signal) }
  async powerButton(signal: AbortSignal): Promise<void> { await this.#ask('button', signal) }
  async state(signal: AbortSignal): Promise<'running' | 'paused' | 'ended'> { return await this.#ask('state', signal) as 'running' }

  kill(): Promise<void> {
    return this.#killed ??= (async () => {
      pidfdSignal(this.#held.pidfd, constants.signals.SIGKILL)
      await this.#held.exited
      closeFd(this.#held.pidfd)
    })()
  }
}
