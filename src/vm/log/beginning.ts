import type { AppRun } from './app-log.ts'
import { contentOf } from './app-log.ts'
import type { StreamId } from './line.ts'

/** A run of a log: the file that it is in, and the offset of its line there. */
export interface Position {
  readonly file: number
  readonly at: number
}

/**
 * How far back before the last lines is looked for a stream that may have a line without its end, in bytes of the file.
 */
const OPEN_BYTES_MAX = 1_048_576

const isBefore = (a: Position, b: Position): boolean => a.file < b.file || (a.file === b.file && a.at < b.at)

/**
 * Finds where the last lines of a log begin, of runs that come newest first. It keeps one position a stream and no
 * line: a log holds millions.
 *
 * A line counts where it ends, whichever stream it is of; one that has begun before the others is still wanted whole.
 */
export class Beginning {
  readonly #streams: readonly StreamId[]
  readonly #more: boolean
  #left: number
  #beyond = OPEN_BYTES_MAX
  /** Streams that are in the middle of a wanted line: its end has been seen, and not its start. */
  readonly #inLine = new Set<StreamId>()
  readonly #seen = new Set<StreamId>()
  readonly #starts = new Map<StreamId, Position & { readonly bytes: number }>()
  #position: Position = { file: 0, at: 0 }

  /** @param more  a line that has not ended is wanted in any case, since its end will be read */
  constructor(streams: readonly StreamId[], count: number, more: boolean) {
    this.#streams = streams
    this.#left = count
    this.#more = more
  }

  /**
   * Takes the run before the last one; true when no older one matters. Lines of a run that is not `wanted` do not
   * count.
   */
  take(run: AppRun, position: Position, size: number, wanted: boolean): boolean {
    this.#position = position
    if (run.s === 0) {
      // What has not ended there never will, and what is older is of another boot.
      for (const stream of this.#inLine) this.#starts.set(stream, { ...position, bytes: 0 })
      this.#inLine.clear()
      for (const stream of this.#streams) this.#seen.add(stream)
      if (this.#left > 0) this.#starts.clear()
      if (this.#left > 0) this.#seen.clear()
      return this.#isDone
    }
    if (this.#left === 0) this.#beyond -= size
    if (!this.#starts.has(run.s)) this.#walk(run, position, wanted)
    return this.#isDone
  }

  #walk(run: AppRun, position: Position, wanted: boolean): void {
    const content = contentOf(run)
    const bytes = typeof content === 'string' ? Buffer.from(content) : content
    const newest = !this.#seen.has(run.s)
    this.#seen.add(run.s)
    let newline = bytes.lastIndexOf(10)
    if (newest && newline !== bytes.byteLength - 1) {
      // A line without its end.
      if (!this.#more && this.#left === 0) {
        this.#starts.set(run.s, { ...position, bytes: bytes.byteLength })
        return
      }
      if (!this.#more && wanted) this.#left--
      this.#inLine.add(run.s)
    }
    for (; newline >= 0; newline = newline === 0 ? -1 : bytes.lastIndexOf(10, newline - 1)) {
      this.#inLine.delete(run.s)
      if (this.#left === 0) {
        this.#starts.set(run.s, { ...position, bytes: newline + 1 })
        return
      }
      if (wanted) this.#left--
      this.#inLine.add(run.s)
    }
  }

  get #isDone(): boolean {
    if (this.#left > 0) return false
    if (this.#inLine.size > 0) return false
    return !this.#more || this.#beyond <= 0 || this.#streams.every((stream) => this.#seen.has(stream))
  }

  /** The position to read on from, forwards. */
  get from(): Position {
    if (this.#left > 0) return { file: 0, at: 0 }
    let from = this.#position
    for (const start of this.#starts.values()) if (isBefore(start, from)) from = start
    return from
  }

  /** Tells how many bytes of a run are before the last lines; undefined where all of it is. */
  skip(run: AppRun, position: Position): number | undefined {
    if (this.#left > 0 || run.s === 0) return 0
    const start = this.#starts.get(run.s)
    if (!start) return this.#inLine.has(run.s) ? 0 : undefined
    if (isBefore(position, start)) return undefined
    return isBefore(start, position) ? 0 : start.bytes
  }
}
