import { type AppLine, bytesOf } from './app-log.ts'

/** A guest may write for ever and end no line: one longer than this is shown in pieces. */
const BYTES_MAX = 1_048_576

/** A line as somebody wrote it, out of one record or of several: a long one, or one that the other stream got ahead of. */
export class Line {
  /** Its last record, whose time is the line's. */
  #end: AppLine
  readonly #parts: AppLine[]
  #bytes: number

  constructor(record: AppLine) {
    this.#end = record
    this.#parts = [record]
    this.#bytes = sizeOf(record)
  }

  get end(): AppLine {
    return this.#end
  }
  get full(): boolean {
    return this.#bytes >= BYTES_MAX
  }
  /** The text, whatever bytes it held; a character may be in two records. */
  get text(): string {
    const { d } = this.#end
    return this.#parts.length === 1 && d !== undefined ? d : Buffer.concat(this.#parts.map(bytesOf)).toString('utf8')
  }

  after(record: AppLine): void {
    this.#parts.push(record)
    this.#bytes += sizeOf(record)
    this.#end = record
  }
  before(record: AppLine): void {
    this.#parts.unshift(record)
    this.#bytes += sizeOf(record)
  }
}

const sizeOf = (record: AppLine): number => record.d?.length ?? record.b?.length ?? 0

/** Puts lines together out of records as they come: one line at most is held back for each stream. */
export class Joiner {
  readonly #held = new Map<AppLine['s'], Line>()

  /** The start of a line, whose other records come. */
  hold(line: Line): void {
    this.#held.set(line.end.s, line)
  }

  /** The lines that end with a record. */
  *take(record: AppLine): Generator<Line> {
    if (record.s === 0) {
      yield* this.rest()
      return
    }
    const held = this.#held.get(record.s)
    const goesOn = held !== undefined && record.c === true
    this.#held.delete(record.s)
    if (held && !goesOn) yield held // its end never came
    const line = goesOn ? held : new Line(record)
    if (goesOn) line.after(record)
    if (record.p && !line.full) this.#held.set(record.s, line)
    else yield line
  }

  /** What is held: no more comes. */
  *rest(): Generator<Line> {
    const held = [...this.#held.values()]
    this.#held.clear()
    yield* held
  }
}
