import { write } from 'node:fs'
import { isatty } from 'node:tty'
import { sleep } from '../lib/wait.ts'

const writeSome = (fd: number, bytes: Uint8Array): Promise<number> =>
  new Promise((resolve, reject) => {
    write(fd, bytes, 0, bytes.length, null, (error, written) => {
      if (error) reject(error)
      else resolve(written)
    })
  })

/**
 * Writes all bytes to a descriptor of ours, in order, and waits until they are out, so that an exit right after loses nothing and a
 * full disk or a closed pipe is an error (Bun's own writer of stdout swallows both).
 */
export const writeAll = async (fd: number, bytes: Uint8Array): Promise<void> => {
  for (let at = 0; at < bytes.length; ) {
    try {
      at += await writeSome(fd, bytes.subarray(at))
    } catch (error) {
      // Another program may have made a shared terminal or pipe non-blocking; there is no event to wait for on a descriptor like this.
      if ((error as { code?: unknown }).code !== 'EAGAIN') throw error
      await sleep(5)
    }
  }
}

export const isTerminal = (fd: 0 | 1 | 2): boolean => isatty(fd)

export const terminalSize = (): { readonly cols: number; readonly rows: number } | undefined => {
  for (const stream of [process.stdout, process.stderr]) {
    if (stream.isTTY && stream.columns > 0) return { cols: stream.columns, rows: stream.rows }
  }
  return undefined
}

/** What stdin says, until its end. Nothing is read ahead of what is asked for. */
export const stdin = (): ReadableStream<Uint8Array> => Bun.stdin.stream()
