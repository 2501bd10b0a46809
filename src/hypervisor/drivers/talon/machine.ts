import { closeSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { Type, type Static } from '@sinclair/typebox'
import { Allowance, type Rate } from '../../../lib/allowance.ts'
import { deferred, sleep } from '../../../lib/promise.ts'
import type { Exit } from '../../../linux/pidfd.ts'
import type { Launched } from '../../../linux/spawn.ts'
import { lastBytes, panicIn } from '../../console-log.ts'
import type { End, Machine, MachineIdentity, Saved } from '../../driver.ts'
import { connectVsock } from '../../vsock.ts'
import { endProcesses } from '../end-processes.ts'
import { Forked, VerbRefused, VmmApi, type VmEvent } from './api.ts'

const SIGKILL = constants.signals.SIGKILL
/** How long one request waits for an event; below what talon allows. */
const WAIT_MS = 50_000
/** The time between two requests, ms, where the first told nothing new early: a hostile talon must not keep us busy. */
const CALM_MS = 500
/** Requests for events, where each told something new. A machine has a dozen events in its life. */
const ASKED: Rate = { perSecond: 2, burst: 64 }
/** What the end of a process waits for an event that came over the socket before it. */
const LAST_WORD_MS = 1000
const CONSOLE_TAIL = 65_536

/**
 * The note for a daemon that adopts: where this boot's console begins. It stands beside the sockets; talon may not read
 * it.
 */
export const ConsoleNote = Type.Object({ log: Type.String(), from: Type.Integer({ minimum: 0 }) })
export type ConsoleNote = Static<typeof ConsoleNote>

/** One talon process that runs a guest. */
export class TalonMachine implements Machine {
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

  /**
   * Hears every event from the first one on, also those from before an adoption, until one is the end or the process
   * has gone.
   */
  async #follow(): Promise<void> {
    const signal = this.#over.signal
    let gone = false
    void this.#process.exited.then(() => {
      gone = true
    })
    const allowance = new Allowance(ASKED)
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
      const wait = after === before && Date.now() - asked < WAIT_MS ? CALM_MS : allowance.reserve(1)
      if (wait > 0) await sleep(wait, signal)
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
    return this.#changeState('paused', 'vm.pause', signal)
  }
  resume(signal: AbortSignal): Promise<void> {
    return this.#changeState('running', 'vm.resume', signal)
  }
  async linkUp(signal: AbortSignal): Promise<void> {
    await this.#api.linkUp(signal)
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

  /** Pauses or resumes the guest. talon refuses what is so already; here that is no error. */
  async #changeState(state: 'running' | 'paused', verb: 'vm.pause' | 'vm.resume', signal: AbortSignal): Promise<void> {
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
