import { appendFileSync, closeSync, existsSync, fstatSync, openSync, readSync, renameSync, statSync } from 'node:fs'
import { EventEmitter } from 'node:events'
import type { LogRecord } from '../../guest/frames.ts'
import { readBackwards } from './line-file.ts'

/** A run of bytes that the workload (or the agent) wrote, as one line of the file. */
export interface AppRun {
  /** Offset in the agent's log right after this run: where to go on after a restart of the daemon. */
  readonly o: number
  /** The time at which it was written, Unix milliseconds. */
  readonly t: number
  /** 1 stdout, 2 stderr, 3 the agent; 0 says nothing but that a new boot began here */
  readonly s: 0 | 1 | 2 | 3
  /** The bytes as text, newlines in it; `y` instead, in base64, where they are no UTF-8 or where that is shorter. */
  readonly x?: string
  readonly y?: string
  /**
   * One line of a release before runs, without its newline, as text or in base64; `p`: it goes on in the next record.
   */
  readonly d?: string
  readonly b?: string
  readonly p?: true
}

/** A run is never longer: a reader takes one at a time into memory. */
const RUN_BYTES_MAX = 16_384
const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** Gives what a run held: text where the file has text, else bytes. */
export const contentOf = (run: AppRun): string | Buffer => {
  if (run.x !== undefined) return run.x
  if (run.y !== undefined) return Buffer.from(run.y, 'base64')
  const end = run.p ? '' : '\n'
  if (run.d !== undefined) return run.d + end
  return Buffer.concat([Buffer.from(run.b ?? '', 'base64'), Buffer.from(end)])
}

/**
 * What the workload of one vm said, on disk, byte for byte: runs of bytes in the order of the agent's offsets, in the
 * newest `maxBytes` and one older file of the same size. Lines are made when somebody reads (`log/tail.ts`): a guest
 * decides how many there are.
 *
 * A run is in the file when `take` returns, so a restart of the daemon goes on after the last one (`next`).
 */
export class AppLog extends EventEmitter<{ append: [] }> {
  readonly path: string
  readonly #maxBytes: number
  #size: number
  #next: number

  constructor(path: string, maxBytes: number) {
    super()
    this.setMaxListeners(0)
    this.path = path
    this.#maxBytes = maxBytes
    // A crash cut the last line short; and who follows needs a file. A full disk must not keep a vm from being stopped.
    this.#append(endsWhole(path) ? '' : '\n')
    this.#size = statSync(path, { throwIfNoEntry: false })?.size ?? 0
    this.#next = lastOffset(path) ?? lastOffset(`${path}.1`) ?? 0
  }

  /** The agent's offset from which bytes are still missing here. */
  get next(): number {
    return this.#next
  }

  /** Starts over: a new boot counts its offsets from 0 again, and the next daemon must know. */
  restart(): void {
    if (this.#next > 0) this.#write({ o: 0, t: Date.now(), s: 0 })
    this.#next = 0
  }

  /**
   * Writes what an agent sent. False where it could not be written, since the disk is full: nothing of it counts as
   * taken from there on.
   */
  take(record: LogRecord): boolean {
    for (let at = 0; at < record.bytes.byteLength; at += RUN_BYTES_MAX) {
      const bytes = record.bytes.subarray(at, at + RUN_BYTES_MAX)
      const run = runOf(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))
      if (!this.#write({ o: record.offset + at + bytes.byteLength, t: record.timeMs, s: record.stream, ...run }))
        return false
    }
    return true
  }

  #write(run: AppRun): boolean {
    const text = `${JSON.stringify(run)}\n`
    const size = Buffer.byteLength(text)
    if (this.#size > 0 && this.#size + size > this.#maxBytes) this.#turnOver()
    if (!this.#append(text)) return false
    this.#size += size
    this.#next = run.o
    this.emit('append')
    return true
  }

  #turnOver(): void {
    try {
      renameSync(this.path, `${this.path}.1`)
      this.#size = 0
    } catch {
      /* its folder is being deleted, or the disk is full: the file grows, or the append says so */
    }
  }

  #append(text: string): boolean {
    try {
      appendFileSync(this.path, text, { mode: 0o600 })
      return true
    } catch {
      return false
    }
  }
}

/** Chooses the shorter of the two ways to write bytes into JSON that is lost in neither. */
const runOf = (bytes: Buffer): Pick<AppRun, 'x'> | Pick<AppRun, 'y'> => {
  let text: string
  try {
    text = strict.decode(bytes)
  } catch {
    return { y: bytes.toString('base64') }
  }
  // Control characters take six bytes each in JSON: a guest must not make its log six times what it says.
  return Buffer.byteLength(JSON.stringify(text)) <= bytes.byteLength * 2 + 2
    ? { x: text }
    : { y: bytes.toString('base64') }
}

const endsWhole = (path: string): boolean => {
  if (!existsSync(path)) return true
  const fd = openSync(path, 'r')
  try {
    const size = fstatSync(fd).size
    const last = Buffer.alloc(1)
    return size === 0 || (readSync(fd, last, 0, 1, size - 1) === 1 && last[0] === 10)
  } finally {
    closeSync(fd)
  }
}

const lastOffset = (path: string): number | undefined => {
  let found: number | undefined
  readBackwards(path, (line) => {
    try {
      found = (JSON.parse(line) as AppRun).o
    } catch {
      return true // a line that a crash cut short
    }
    return false
  })
  return found
}
