import { closeSync, fstatSync, openSync, readSync } from 'node:fs'

/** Reads the last bytes of a log as text, none of them before `from`. */
export const lastBytes = (path: string, count: number, from = 0): string => {
  const fd = openSync(path, 'r')
  try {
    const { size } = fstatSync(fd)
    const start = Math.max(size - count, from <= size ? from : 0, 0)
    const bytes = Buffer.alloc(size - start)
    return bytes.toString('utf8', 0, readSync(fd, bytes, 0, bytes.byteLength, start))
  } finally {
    closeSync(fd)
  }
}

/** Finds what Linux panicked of, by the end of its console; undefined where it says no such thing. */
export const panicIn = (console: string): string | undefined =>
  /Kernel panic - not syncing: ?([^\r\n]*)/.exec(console)?.[1]
