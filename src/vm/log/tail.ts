import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import type { LogLine } from '../../contract/log.ts'
import { withoutControls } from '../../lib/plain.ts'
import { share } from '../../lib/turn.ts'
import type { AppRun } from './app-log.ts'
import { firstByte, piecesBackwards } from './line-file.ts'
import { Beginning } from './beginning.ts'
import { Lines, type Piece, wordsOf } from './line.ts'

export type Source = 'app' | 'console' | 'vmm' | 'agent'
const CHUNK = 262_144
const STREAMS = { 1: 'stdout', 2: 'stderr', 3: 'agent' } as const

const openIfThere = (path: string): number | undefined => {
  try {
    return openSync(path, 'r')
  } catch (error) {
    if ((error as { code?: unknown }).code === 'ENOENT') return undefined
    throw error
  }
}

/** A position in one log of a vm, a file of lines that grows and may be turned over (`.1`). */
export class Tail {
  readonly path: string
  readonly #name: string
  readonly #source: Source
  readonly #since: number
  readonly #lines = new Lines()
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

  /** Tells whether the start of a line has been read and not shown. */
  get holds(): boolean {
    return this.#lines.some
  }

  /**
   * Reads what the log holds: all, or its last `count` lines. Where more is to be read, a line that has not ended is
   * kept for then.
   */
  async *last(count: number | undefined, more: boolean): AsyncGenerator<LogLine> {
    // Both at once: the file may be turned over while they are read.
    const files = [openIfThere(`${this.path}.1`), openIfThere(this.path)]
    const [old, fd] = files
    try {
      if (fd !== undefined) {
        const at = fstatSync(fd, { bigint: true })
        this.#at = Number(at.size)
        this.#inode = at.ino
      }
      if (count === 0) return
      const ends = [old === undefined ? 0 : fstatSync(old).size, this.#at]
      const beginning = count === undefined ? undefined : await this.#beginning(files, ends, count, more)
      const from = beginning?.from ?? { file: 0, at: 0 }
      for (let file = from.file; file < files.length; file++) {
        const one = files[file]
        const at = file === from.file ? from.at : 0
        if (one !== undefined)
          yield* this.#read(
            one,
            at,
            ends[file] ?? 0,
            (run, position) => beginning?.skip(run, { file, at: position }) ?? (beginning ? undefined : 0),
          )
      }
      if (!more) yield* this.rest()
    } finally {
      for (const one of files) if (one !== undefined) closeSync(one)
    }
  }

  /** Reads what was added since. */
  async *more(): AsyncGenerator<LogLine> {
    const fd = openIfThere(this.path)
    if (fd === undefined) return
    let old: number | undefined
    try {
      const { ino, size: bytes } = fstatSync(fd, { bigint: true })
      const size = Number(bytes)
      if (ino !== this.#inode && this.#inode !== 0n) {
        old = openIfThere(`${this.path}.1`)
        if (old !== undefined) yield* this.#read(old, this.#at, Number.MAX_SAFE_INTEGER)
        this.#at = 0
      }
      this.#inode = ino
      if (size < this.#at) this.#at = 0
      const from = this.#at
      this.#at = Math.max(size, from)
      if (size > from) yield* this.#read(fd, from, size)
    } finally {
      for (const one of [old, fd]) if (one !== undefined) closeSync(one)
    }
  }

  /** Gives what was held back as the start of a line: no more will come, or nobody waits longer for its end. */
  *rest(): Generator<LogLine> {
    if (this.#isPlain && this.#begun.byteLength > 0) {
      const run = this.#run(this.#begun.toString('utf8'))
      if (run) yield* this.#show(this.#lines.take(run))
      this.#begun = Buffer.alloc(0)
    }
    yield* this.#show(this.#lines.rest())
  }

  /**
   * Reads the lines of a part of a file. `skip` tells how many bytes of a run are not wanted; undefined where none of
   * it is.
   */
  async *#read(
    fd: number,
    from: number,
    to: number,
    skip: (run: AppRun, at: number) => number | undefined = () => 0,
  ): AsyncGenerator<LogLine> {
    const chunk = Buffer.alloc(CHUNK)
    for (let at = Math.max(from, firstByte(fd)); at < to; ) {
      const read = readSync(fd, chunk, 0, Math.min(CHUNK, to - at), at)
      if (read === 0) return
      let bytes = Buffer.concat([this.#begun, chunk.subarray(0, read)])
      let position = at - this.#begun.byteLength
      at += read
      for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10)) {
        const run = this.#run(bytes.subarray(0, end).toString('utf8'))
        if (run) {
          const bytes = skip(run, position)
          if (bytes !== undefined) yield* this.#show(this.#lines.take(run, bytes))
        }
        position += end + 1
        bytes = bytes.subarray(end + 1)
        const turn = share()
        if (turn) await turn
      }
      this.#begun = Buffer.from(bytes.byteLength > CHUNK ? bytes.subarray(-CHUNK) : bytes)
    }
  }

  async #beginning(
    files: readonly (number | undefined)[],
    ends: readonly number[],
    count: number,
    more: boolean,
  ): Promise<Beginning> {
    const beginning = new Beginning(this.#isPlain ? [1] : this.#source === 'agent' ? [3] : [1, 2], count, more)
    for (let file = files.length - 1; file >= 0; file--) {
      const fd = files[file]
      if (fd === undefined) continue
      for (const lines of piecesBackwards(fd, ends[file])) {
        for (const { at, text } of lines) {
          const run = this.#run(text)
          if (run && beginning.take(run, { file, at }, text.length, this.#wants(run))) return beginning
        }
        const turn = share()
        if (turn) await turn
      }
    }
    return beginning
  }

  /** Reads a line of the file as a run; undefined where it is of another source, or was cut by a crash. */
  #run(text: string): AppRun | undefined {
    if (this.#isPlain) return { o: 0, t: 0, s: 1, x: `${withoutControls(text.replace(/\r$/, ''))}\n` }
    try {
      const run = JSON.parse(text) as AppRun
      return run.s === 0 || (run.s === 3) === (this.#source === 'agent') ? run : undefined
    } catch {
      return undefined
    }
  }

  get #isPlain(): boolean {
    return this.#source === 'console' || this.#source === 'vmm'
  }
  #wants(run: AppRun): boolean {
    return this.#isPlain || run.t >= this.#since
  }

  *#show(pieces: Iterable<Piece>): Generator<LogLine> {
    for (const piece of pieces) {
      if (piece.stream === 0 || (!this.#isPlain && piece.time < this.#since)) continue
      yield {
        name: this.#name,
        source: this.#source,
        stream: this.#isPlain ? this.#source : STREAMS[piece.stream],
        timestamp: this.#isPlain ? null : new Date(piece.time).toISOString(),
        ...wordsOf(piece),
      }
    }
  }
}
