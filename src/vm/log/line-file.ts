import { closeSync, existsSync, fstatSync, openSync, readSync } from 'node:fs'

/*
 * Files of lines, which only grow at their end: read from it, and no more of them than is wanted.
 */

/** Blocks as stat(2) counts them. */
const STAT_BLOCK = 512

/**
 * Finds where a log begins to hold something. The old part of a console is given back to the disk
 * (`vm/log/console-trim.ts`) and reads as zeros, any number of gigabytes of them: as many bytes as the file has blocks
 * stand at its end.
 */
export const firstByte = (fd: number): number => {
  const { size, blocks } = fstatSync(fd)
  const held = blocks * STAT_BLOCK
  if (held >= size) return 0
  const front = Buffer.alloc(4096) // a file system that compresses has few blocks too, and no hole in front
  return front.subarray(0, readSync(fd, front, 0, front.byteLength, 0)).every((byte) => byte === 0) ? size - held : 0
}

/**
 * The most bytes of a line that is read back. A guest may write its console for ever and end no line: more than this of
 * one is left out.
 */
const BACK_MAX = 1_048_576
const BACK_CHUNK = 65_536

/** A line of a file, and where it begins. */
export interface LineAt {
  readonly at: number
  readonly text: string
}

/**
 * Reads the lines of an open file before `size` from its end, newest first, as many at a time as end in one piece of
 * the file; none in one that holds the middle of a long line. Empty lines are left out.
 */
export function* piecesBackwards(fd: number, size = fstatSync(fd).size): Generator<readonly LineAt[], void> {
  const from = firstByte(fd)
  /** The line that is being put together, its parts in order, and how long it is. */
  let parts: Buffer[] = []
  let length = 0
  for (let at = size; at > from; ) {
    const wanted = Math.min(BACK_CHUNK, at - from)
    const chunk = Buffer.alloc(wanted)
    const lines: LineAt[] = []
    at -= wanted
    readSync(fd, chunk, 0, wanted, at)
    let end = wanted
    for (let cut = chunk.lastIndexOf(10); cut >= 0; cut = cut === 0 ? -1 : chunk.lastIndexOf(10, cut - 1)) {
      if (end - cut > 1 || parts.length > 0)
        lines.push({ at: at + cut + 1, text: Buffer.concat([chunk.subarray(cut + 1, end), ...parts]).toString('utf8') })
      parts = []
      length = 0
      end = cut
    }
    if (length < BACK_MAX && end > 0) parts.unshift(chunk.subarray(0, end))
    length += end
    if (at <= from && parts.length > 0) lines.push({ at: from, text: Buffer.concat(parts).toString('utf8') })
    yield lines
  }
}

/**
 * Reads the lines of a file from its end, newest first: `take` says whether it wants the one before. Empty lines are
 * left out.
 */
export const readBackwards = (path: string, take: (line: string) => boolean): void => {
  if (!existsSync(path)) return
  const fd = openSync(path, 'r')
  try {
    for (const lines of piecesBackwards(fd)) for (const line of lines) if (!take(line.text)) return
  } finally {
    closeSync(fd)
  }
}
