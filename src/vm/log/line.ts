import type { LogLine } from '../../contract/log.ts'
import { type AppRun, contentOf } from './app-log.ts'

/** A guest may write for ever and end no line: a longer one is shown in pieces. */
const BYTES_MAX = 1_048_576
const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

export type StreamId = AppRun['s']

/** A line as somebody wrote it, or a piece of one. */
export interface Piece {
  readonly stream: StreamId
  /** The time at which its last byte was written, Unix milliseconds. */
  readonly time: number
  readonly parts: readonly (string | Buffer)[]
  /** Whether its newline was there. */
  readonly ended: boolean
}

/** Writes a piece as it stands on the wire: its text, or its bytes in base64 where they are no UTF-8. */
export const wordsOf = (piece: Piece): Pick<LogLine, 'line' | 'encoding' | 'partial'> => {
  const partial = piece.ended ? {} : { partial: true as const }
  if (piece.parts.every((part) => typeof part === 'string')) return { line: piece.parts.join(''), ...partial }
  const bytes = Buffer.concat(piece.parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : part)))
  try {
    return { line: strict.decode(bytes), ...partial }
  } catch {
    return { line: bytes.toString('base64'), encoding: 'base64', ...partial }
  }
}

/** Makes lines out of runs as they come: the line that has not ended is held back for each stream. */
export class Lines {
  readonly #held = new Map<StreamId, { parts: (string | Buffer)[]; bytes: number; time: number }>()

  /** Tells whether something is held back. */
  get some(): boolean {
    return this.#held.size > 0
  }

  /** Reads the lines that end in a run. Its first `skip` bytes are somebody else's. */
  *take(run: AppRun, skip = 0): Generator<Piece> {
    if (run.s === 0) {
      yield* this.rest()
      return
    }
    let content = contentOf(run)
    if (skip > 0) content = (typeof content === 'string' ? Buffer.from(content) : content).subarray(skip)
    const held = this.#held.get(run.s) ?? { parts: [], bytes: 0, time: run.t }
    this.#held.delete(run.s)
    let from = 0
    for (let end = indexOf(content, from); end >= 0; end = indexOf(content, from)) {
      yield { stream: run.s, time: run.t, parts: [...held.parts, slice(content, from, end)], ended: true }
      held.parts = []
      held.bytes = 0
      from = end + 1
    }
    if (from < content.length) {
      held.parts.push(slice(content, from, content.length))
      held.bytes += content.length - from
    }
    if (held.parts.length === 0) return
    if (held.bytes >= BYTES_MAX) yield { stream: run.s, time: run.t, parts: held.parts, ended: false }
    else this.#held.set(run.s, { ...held, time: run.t })
  }

  /** Gives what is held back where nothing more comes, or somebody has waited long enough for its end. */
  *rest(): Generator<Piece> {
    const held = [...this.#held]
    this.#held.clear()
    for (const [stream, { parts, time }] of held) yield { stream, time, parts, ended: false }
  }
}

// A string and a Buffer have these by the same names, and TypeScript has no call that fits both.
const indexOf = (content: string | Buffer, from: number): number =>
  typeof content === 'string' ? content.indexOf('\n', from) : content.indexOf(10, from)
const slice = (content: string | Buffer, from: number, to: number): string | Buffer =>
  typeof content === 'string' ? content.slice(from, to) : content.subarray(from, to)
