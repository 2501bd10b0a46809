import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import type { LogLine } from '../../contract/log.ts'
import type { AppLine } from './app-log.ts'
import { withoutControls } from '../../lib/plain.ts'
import { firstByte, piecesBackwards } from './line-file.ts'
import { Joiner, Line } from './line.ts'

export type Source = 'app' | 'console' | 'vmm' | 'agent'
const CHUNK = 262_144
/** How far back before the last lines is looked for one that has not ended, which goes on as more is read. */
const OPEN_BYTES_MAX = 262_144
const STREAMS = { 1: 'stdout', 2: 'stderr', 3: 'agent' } as const

/** Lets others have the event loop, between two pieces of a file: a reader may want nothing of all that it holds. */
const pause = (): Promise<void> =>
  new Promise((resolve) => {
    setImmediate(resolve)
  })

const openIfThere = (path: string): number | undefined => {
  try {
    return openSync(path, 'r')
  } catch (error) {
    if ((error as { code?: unknown }).code === 'ENOENT') return undefined
    throw error
  }
}

/** A place in one log of a vm, a file of lines that grows and may be turned over (`.1`). */
export class Tail {
  readonly path: string
  readonly #name: string
  readonly #source: Source
  readonly #since: number
  readonly #joiner = new Joiner()
  #at = 0
  #inode = 0n
  /** The start of a line of the file whose end was not there yet. */
  #begun = Buffer.alloc(0)

  /** @param since  lines from before this time are not shown, where a line has a time */
  constructor(path: string, name: string, source: Source, since: number) {
    this.path = path
    this.#name = name
    this.#source = source
    this.#since = since
  }

  /** What the log holds: all, or its last `count` lines. Where more is to be read, a line that has not ended is kept for then. */
  async *last(count: number | undefined, more: boolean): AsyncGenerator<LogLine> {
    // Both at once: the file may be turned over while they are read.
    const old = openIfThere(`${this.path}.1`)
    const fd = openIfThere(this.path)
    try {
      if (fd !== undefined) {
        const at = fstatSync(fd, { bigint: true })
        this.#at = Number(at.size)
        this.#inode = at.ino
      }
      if (count === 0) return
      if (count !== undefined) {
        yield* this.#backwards([fd, old], count, more)
        return
      }
      for (const [one, end] of [
        [old, Number.MAX_SAFE_INTEGER],
        [fd, this.#at],
      ] as const)
        if (one !== undefined) yield* this.#lines(one, 0, end)
      if (!more) yield* this.rest()
    } finally {
      for (const one of [old, fd]) if (one !== undefined) closeSync(one)
    }
  }

  /** What was added since. */
  async *more(): AsyncGenerator<LogLine> {
    const fd = openIfThere(this.path)
    if (fd === undefined) return
    let old: number | undefined
    try {
      const { ino, size: bytes } = fstatSync(fd, { bigint: true })
      const size = Number(bytes)
      if (ino !== this.#inode && this.#inode !== 0n) {
        old = openIfThere(`${this.path}.1`)
        if (old !== undefined) yield* this.#lines(old, this.#at, Number.MAX_SAFE_INTEGER)
        this.#at = 0
      }
      this.#inode = ino
      if (size < this.#at) this.#at = 0
      const from = this.#at
      this.#at = Math.max(size, from)
      if (size > from) yield* this.#lines(fd, from, size)
    } finally {
      for (const one of [old, fd]) if (one !== undefined) closeSync(one)
    }
  }

  /** What was held back as the start of a line: no more will come. */
  *rest(): Generator<LogLine> {
    if (this.#begun.byteLength > 0) yield* this.#take(this.#begun)
    this.#begun = Buffer.alloc(0)
    yield* this.#show(this.#joiner.rest())
  }

  async *#lines(fd: number, from: number, to: number): AsyncGenerator<LogLine> {
    const chunk = Buffer.alloc(CHUNK)
    for (let at = Math.max(from, firstByte(fd)); at < to; ) {
      const read = readSync(fd, chunk, 0, Math.min(CHUNK, to - at), at)
      if (read === 0) return
      at += read
      let bytes = Buffer.concat([this.#begun, chunk.subarray(0, read)])
      for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10)) {
        yield* this.#take(bytes.subarray(0, end))
        bytes = bytes.subarray(end + 1)
      }
      this.#begun = Buffer.from(bytes.byteLength > CHUNK ? bytes.subarray(-CHUNK) : bytes)
      await pause()
    }
  }

  async *#backwards(fds: readonly (number | undefined)[], count: number, more: boolean): AsyncGenerator<LogLine> {
    const kept: Line[] = []
    const seen = new Set<number>()
    /** Lines whose start has not been read, by stream. */
    const open = new Map<number, Line>()
    const streams = this.#isPlain ? [] : this.#source === 'agent' ? [3] : [1, 2]
    let left = OPEN_BYTES_MAX
    const enough = (): boolean =>
      kept.length >= count && open.size === 0 && (!more || left <= 0 || streams.every((stream) => seen.has(stream)))
    const take = (text: string): void => {
      const record = this.#record(text)
      if (!record) return
      if (record.s === 0) {
        open.clear()
        for (const stream of [1, 2, 3]) seen.add(stream)
        return
      }
      const known = open.get(record.s)
      const newest = !seen.has(record.s)
      open.delete(record.s)
      seen.add(record.s)
      const line = known && record.p ? known : new Line(record)
      if (line === known) line.before(record)
      else if (more && newest && record.p)
        this.#joiner.hold(line) // its end comes
      else if (kept.length < count && this.#wants(record)) kept.push(line)
      else return
      if (record.c && !line.full) open.set(record.s, line)
    }
    for (const fd of fds) {
      if (fd === undefined) continue
      for (const lines of piecesBackwards(fd)) {
        for (const line of lines) {
          take(line)
          if (kept.length >= count) left -= line.length
          if (enough()) {
            yield* this.#show(kept.reverse())
            return
          }
        }
        await pause()
      }
    }
    yield* this.#show(kept.reverse())
  }

  *#take(bytes: Buffer): Generator<LogLine> {
    const record = this.#record(bytes.toString('utf8'))
    if (record) yield* this.#show(this.#joiner.take(record))
  }

  /** A line of the file as a record; undefined where it is of another source, or was cut by a crash. */
  #record(text: string): AppLine | undefined {
    if (this.#isPlain) return { o: 0, t: 0, s: 1, d: withoutControls(text.replace(/\r$/, '')) }
    try {
      const record = JSON.parse(text) as AppLine
      return record.s === 0 || (record.s === 3) === (this.#source === 'agent') ? record : undefined
    } catch {
      return undefined
    }
  }

  get #isPlain(): boolean {
    return this.#source === 'console' || this.#source === 'vmm'
  }
  #wants(record: AppLine): boolean {
    return this.#isPlain || record.t >= this.#since
  }

  *#show(lines: Iterable<Line>): Generator<LogLine> {
    const name = this.#name
    const source = this.#source
    for (const line of lines) {
      const { s, t } = line.end
      if (s === 0 || !this.#wants(line.end)) continue
      yield {
        name,
        source,
        line: line.text,
        ...(this.#isPlain
          ? { stream: source, timestamp: null }
          : { stream: STREAMS[s], timestamp: new Date(t).toISOString() }),
      }
    }
  }
}
