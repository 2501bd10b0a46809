import { appendFileSync, closeSync, existsSync, fstatSync, openSync, readSync, renameSync, statSync } from 'node:fs'
import { EventEmitter } from 'node:events'
import type { LogRecord } from '../../guest/frames.ts'
import { piecesBackwards, readBackwards } from './line-file.ts'

/** One line that the workload (or the agent) wrote. */
export interface AppLine {
  /** Offset in the agent's log right after this line: where to go on after a restart of the daemon. */
  readonly o: number
  readonly t: number
  /** 1 stdout, 2 stderr, 3 the agent; 0 says nothing but that a new boot began here */
  readonly s: 0 | 1 | 2 | 3
  /** The line, UTF-8; `b` instead where it is no UTF-8. */
  readonly d?: string
  readonly b?: string
  /** The line goes on in the next record of its stream. */
  readonly p?: true
  /** The line began in the record before of its stream. */
  readonly c?: true
}

/** A line longer than this is kept in parts. */
const LINE_MAX = 16_384
/** How far back is looked for a line that has no end yet, when the daemon comes back. */
const OPEN_BYTES_MAX = 262_144
const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** What a line, or a part of one, held. */
export const bytesOf = (line: AppLine): Buffer =>
  line.d === undefined ? Buffer.from(line.b ?? '', 'base64') : Buffer.from(line.d)

/**
 * What the workload of one vm said, on disk: a JSON object a line, the last `maxBytes` and one older file of the same size.
 *
 * Written before it is acknowledged to anybody, so a restart of the daemon goes on after the last line (`next`): records stand in the
 * order of the agent's offsets, and what was held back as the start of a line is written first when another stream gets ahead of it.
 */
export class AppLog extends EventEmitter<{ append: [] }> {
  readonly path: string
  readonly #maxBytes: number
  #size: number
  #next: number
  readonly #partial = new Map<1 | 2 | 3, { bytes: Buffer; offset: number; timeMs: number }>()
  /** Streams whose last record in the file is a line without its end. */
  readonly #open: Set<1 | 2 | 3>

  constructor(path: string, maxBytes: number) {
    super()
    this.setMaxListeners(0)
    this.path = path
    this.#maxBytes = maxBytes
    appendFileSync(path, endsWhole(path) ? '' : '\n', { mode: 0o600 }) // a crash cut the last line short; who follows needs a file
    this.#size = statSync(path, { throwIfNoEntry: false })?.size ?? 0
    this.#next = lastOffset(path) ?? lastOffset(`${path}.1`) ?? 0
    this.#open = openStreams(path)
  }

  /** The agent's offset from which bytes are still missing here. */
  get next(): number {
    return this.#next
  }

  /** Starts over: a new boot counts its offsets from 0 again, and the next daemon must know. */
  restart(): void {
    this.#partial.clear()
    this.#open.clear()
    if (this.#next > 0) this.#write([{ o: 0, t: Date.now(), s: 0 }])
  }

  /** Where a stream that is opened anew goes on: what was held back as the start of a line comes again. */
  resume(): number {
    this.#partial.clear()
    return this.#next
  }

  take(record: LogRecord): void {
    const lines: AppLine[] = []
    for (const [stream, held] of this.#partial) if (stream !== record.stream) this.#flush(stream, held, lines)
    const held = this.#partial.get(record.stream)
    let bytes = held ? Buffer.concat([held.bytes, record.bytes]) : Buffer.from(record.bytes)
    let offset = held ? held.offset : record.offset
    for (;;) {
      const end = bytes.indexOf(10)
      if (end < 0 && bytes.byteLength <= LINE_MAX) break
      const cut = end >= 0 && end <= LINE_MAX ? end : wholeCharacters(bytes, LINE_MAX)
      offset += cut + (cut === end ? 1 : 0)
      lines.push(this.#line(bytes.subarray(0, cut), offset, record.timeMs, record.stream, cut !== end))
      bytes = bytes.subarray(cut + (cut === end ? 1 : 0))
    }
    if (bytes.byteLength > 0)
      this.#partial.set(record.stream, { bytes: Buffer.from(bytes), offset, timeMs: record.timeMs })
    else this.#partial.delete(record.stream)
    this.#write(lines)
  }

  /** Writes what was held back as the start of a line: the workload has ended. */
  flush(): void {
    const lines: AppLine[] = []
    for (const [stream, held] of this.#partial) this.#flush(stream, held, lines)
    this.#write(lines)
  }

  #flush(stream: 1 | 2 | 3, held: { bytes: Buffer; offset: number; timeMs: number }, lines: AppLine[]): void {
    lines.push(this.#line(held.bytes, held.offset + held.bytes.byteLength, held.timeMs, stream, true))
    this.#partial.delete(stream)
  }

  #line(bytes: Buffer, offset: number, timeMs: number, stream: 1 | 2 | 3, partial: boolean): AppLine {
    const rest = {
      o: offset,
      t: timeMs,
      s: stream,
      ...(partial && { p: true as const }),
      ...(this.#open.has(stream) && { c: true as const }),
    }
    if (partial) this.#open.add(stream)
    else this.#open.delete(stream)
    try {
      return { ...rest, d: strict.decode(bytes) }
    } catch {
      return { ...rest, b: bytes.toString('base64') }
    }
  }

  #write(lines: readonly AppLine[]): void {
    const last = lines.at(-1)
    if (!last) return
    const text = lines.map((line) => `${JSON.stringify(line)}\n`).join('')
    if (this.#size > this.#maxBytes) {
      renameSync(this.path, `${this.path}.1`)
      this.#size = 0
    }
    appendFileSync(this.path, text, { mode: 0o600 })
    this.#size += Buffer.byteLength(text)
    this.#next = last.o
    this.emit('append')
  }
}

/** `at`, or a little before it where it is in the middle of a character: UTF-8 has at most three bytes that continue one. */
const wholeCharacters = (bytes: Buffer, at: number): number => {
  for (let cut = at; cut > at - 4; cut--) if (((bytes[cut] ?? 0) & 0xc0) !== 0x80) return cut
  return at
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
      found = (JSON.parse(line) as AppLine).o
    } catch {
      return true
    } // a line that a crash cut short
    return false
  })
  return found
}

/** The streams whose last record is a line without its end. */
const openStreams = (path: string): Set<1 | 2 | 3> => {
  const seen = new Set<number>()
  const open = new Set<1 | 2 | 3>()
  const fd = openSync(path, 'r')
  try {
    let left = OPEN_BYTES_MAX
    for (const lines of piecesBackwards(fd)) {
      for (const line of lines) {
        let record: AppLine
        try {
          record = JSON.parse(line) as AppLine
        } catch {
          continue
        }
        if (record.s === 0) return open
        if (!seen.has(record.s) && record.p) open.add(record.s)
        seen.add(record.s)
        left -= line.length
      }
      if (left <= 0 || seen.size === 3) break
    }
    return open
  } finally {
    closeSync(fd)
  }
}
