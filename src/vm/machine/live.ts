import { type Conversation, converse } from '../../guest/conversation.ts'
import { FRAME, decodeLog } from '../../guest/frames.ts'
import type { GuestSession } from '../../guest/session.ts'
import type { Machine } from '../../hypervisor/driver.ts'
import type { Log } from '../../lib/log.ts'
import { type Deferred, deferred, orAbort, sleep } from '../../lib/promise.ts'
import type { AppLog } from '../log/app-log.ts'
import { LogIntake } from '../log/intake.ts'
import { messageOf } from '../../lib/thrown.ts'
import { HaltState } from './halt.ts'

/** How long the last lines of a workload may take to arrive once it has ended. */
const DRAIN_MS = 5000

/**
 * A vm that has a machine now: the process, the agent's session, the stream of the workload's log. In memory only; the
 * row is the truth, and `vm/adopt.ts` makes one of these anew for each machine that outlived the daemon.
 *
 * It belongs to one boot: a reboot or a restart makes another. Whoever acts later on a vm compares
 * `host.vms.live.get(uid)` with the one it knew, so an end that comes late never touches a newer boot.
 */
export class LiveVm {
  readonly uid: string
  readonly name: string
  readonly log: AppLog
  readonly #intake: LogIntake
  readonly session: GuestSession
  /** Resolves at the agent's `ready`; rejects where the agent reported that it failed. */
  readonly ready: Deferred<number> = deferred()
  /** Aborted when the vm is stopped or deleted while it boots. */
  readonly cancel = new AbortController()
  #machine: Machine | undefined
  readonly #hasMachine: Deferred<Machine> = deferred()
  /** Somebody sees to it that the machine does what the row says. */
  isReconciling = false
  /** Somebody attached at least once; a held vm that nobody attaches to is not kept for ever. */
  attached = false
  readonly halts = new HaltState()
  #following: Promise<void> | undefined
  #draining = false
  #followed: Conversation | undefined
  readonly #logger: Log
  readonly #done = new AbortController()

  constructor(uid: string, name: string, log: AppLog, session: GuestSession, logger: Log) {
    this.uid = uid
    this.name = name
    this.log = log
    this.#intake = new LogIntake(log, this.#done.signal)
    this.session = session
    this.#logger = logger
  }

  get machine(): Machine | undefined {
    return this.#machine
  }

  /** The agent may speak before the driver has said that its machine runs: what needs the machine waits for this. */
  set machine(machine: Machine) {
    this.#machine = machine
    this.#hasMachine.resolve(machine)
  }

  /** A signal that is aborted when the daemon lets go of this boot. */
  get closed(): AbortSignal {
    return this.#done.signal
  }

  /**
   * Resolves when the machine is written down; rejects where it never will be. Until then no event of the guest is
   * taken.
   */
  async recorded(): Promise<void> {
    await orAbort(this.#hasMachine.promise, this.#done.signal)
  }

  /** Keeps the workload's log on disk: from where the file ends, until the log ends or the machine has gone. */
  follow(): void {
    this.#following ??= this.#followAll()
  }

  async #followAll(): Promise<void> {
    const { signal } = this.#done
    for (let wait = 100; !signal.aborted && !this.#draining; wait = Math.min(wait * 2, 5000)) {
      try {
        if (await this.#followOnce(signal)) return
        wait = 50
      } catch (error) {
        this.#logger.debug({ vm: this.name, reason: messageOf(error) }, 'the log stream broke')
      }
      if (!this.#draining) await sleep(wait, signal) // whoever drains reads the rest at once
    }
  }

  /** Follows the log once: true when it has ended, false when the stream broke before. */
  async #followOnce(signal: AbortSignal): Promise<boolean> {
    const machine = await orAbort(this.#hasMachine.promise, signal)
    const { conversation, ok } = await converse(
      machine,
      'logs',
      { from: this.#intake.resume(), follow: !this.#draining },
      signal,
    )
    if (ok.next < this.log.next) this.log.restart()
    this.#followed = conversation
    const close = () => {
      conversation.close()
    }
    signal.addEventListener('abort', close, { once: true })
    try {
      for await (const frame of conversation) {
        if (frame.type === FRAME.log) await this.#intake.take(decodeLog(frame))
        else if (frame.type === FRAME.eof) return true
      }
      return false
    } finally {
      signal.removeEventListener('abort', close)
      conversation.close()
      this.#followed = undefined
    }
  }

  /** Reads the rest of the agent's log after the workload's end, but not for ever: all that it said is in there. */
  async drain(): Promise<void> {
    this.#draining = true
    this.#followed?.close()
    const rest = async () => {
      await this.#following
      while (!this.#done.signal.aborted && !(await this.#followOnce(this.#done.signal))) {
        /* cut short: what is left is asked for again */
      }
    }
    await Promise.race([rest().catch(() => undefined), sleep(DRAIN_MS)])
    this.#intake.flush()
  }

  /** Drains the log where the machine may be gone already: what is on its way is taken, nothing new is asked for. */
  async drainIfConnected(): Promise<void> {
    if (this.#followed && !this.#followed.closed) await Promise.race([this.#following, sleep(500)])
    this.#intake.flush()
  }

  /** Lets go of all that is the daemon's own; the machine is not touched. */
  close(): void {
    this.#done.abort()
    this.#followed?.close()
    this.session.close()
    this.#intake.flush()
  }
}
