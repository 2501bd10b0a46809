import type { LogRecord } from '../../guest/frames.ts'
import { Allowance, type Rate } from '../../lib/allowance.ts'
import { share } from '../../lib/turn.ts'
import { sleep } from '../../lib/promise.ts'
import type { AppLog } from './app-log.ts'

/**
 * What a workload wrote in this time is one run of the file: a program that writes single bytes must not cost a record
 * each.
 */
const GATHER_MS = 25
const GATHER_BYTES_MAX = 65_536
/** What one vm may write into its log: beyond it the agent is not read, whose ring then drops the oldest. */
const RATE: Rate = { perSecond: 8 * 2 ** 20, burst: 32 * 2 ** 20 }
/** What a record costs the daemon beside its bytes. */
const RECORD_BYTES = 64

/** Why the log of a vm is not read on for a while: its disk takes no more. */
export class LogUnwritable extends Error {
  override name = 'LogUnwritable'
}

/**
 * Carries what an agent sends into the file: gathered into runs, in pieces that leave the event loop to others, at a
 * bounded rate.
 */
export class LogIntake {
  readonly #log: AppLog
  readonly #allowance = new Allowance(RATE)
  readonly #signal: AbortSignal
  #pending: { stream: 1 | 2 | 3; offset: number; timeMs: number; parts: Uint8Array[] } | undefined
  #bytes = 0
  #timer: NodeJS.Timeout | undefined
  #failed = false

  constructor(log: AppLog, signal: AbortSignal) {
    this.#log = log
    this.#signal = signal
  }

  /** Takes one record. @throws LogUnwritable: nothing after `AppLog.next` was taken */
  async take(record: LogRecord): Promise<void> {
    for (let at = 0; at < record.bytes.byteLength; at += GATHER_BYTES_MAX) {
      this.#gather(record, record.bytes.subarray(at, at + GATHER_BYTES_MAX), at)
      if (this.#bytes >= GATHER_BYTES_MAX) this.flush()
      if (this.#failed) {
        this.#failed = false
        throw new LogUnwritable('the log takes no more: is its disk full?')
      }
      const turn = share()
      if (turn) await turn
    }
    const wait = this.#allowance.reserve(record.bytes.byteLength + RECORD_BYTES)
    if (wait > 0) {
      this.flush()
      await sleep(wait, this.#signal)
    }
  }

  #gather(record: LogRecord, bytes: Uint8Array, at: number): void {
    const offset = record.offset + at
    const pending = this.#pending
    const goesOn =
      pending !== undefined &&
      pending.stream === record.stream &&
      pending.offset + this.#bytes === offset &&
      Math.abs(record.timeMs - pending.timeMs) < 2 * GATHER_MS
    if (!goesOn) {
      this.flush()
      this.#pending = { stream: record.stream, offset, timeMs: record.timeMs, parts: [] }
      this.#timer = setTimeout(() => {
        this.flush()
      }, GATHER_MS)
    }
    this.#pending?.parts.push(bytes)
    this.#bytes += bytes.byteLength
  }

  /** Writes what was gathered. */
  flush(): void {
    clearTimeout(this.#timer)
    const pending = this.#pending
    this.#pending = undefined
    this.#bytes = 0
    if (!pending || this.#failed) return
    const bytes = pending.parts.length === 1 ? pending.parts[0] : Buffer.concat(pending.parts)
    if (bytes && !this.#log.take({ ...pending, bytes })) this.#failed = true
  }

  /** Tells from where the agent's log is to be read on. What could not be written is asked for again. */
  resume(): number {
    this.flush()
    this.#failed = false
    return this.#log.next
  }
}
