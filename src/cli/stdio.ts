import { fstatSync, write, writeSync } from 'node:fs'
import { sleep } from '../lib/promise.ts'

const writeSome = (fd: number, bytes: Uint8Array): Promise<number> =>
  new Promise((resolve, reject) => {
    write(fd, bytes, 0, bytes.length, null, (error, written) => {
      if (error) reject(error)
      else resolve(written)
    })
  })

/**
 * Writes all bytes to a descriptor of ours, in order, and waits until they are out, so that an exit right after loses
 * nothing and a full disk or a closed pipe is an error (Bun's own writer of stdout swallows both).
 */
export const writeAll = async (fd: number, bytes: Uint8Array): Promise<void> => {
  for (let at = 0; at < bytes.length; ) {
    try {
      at += await writeSome(fd, bytes.subarray(at))
    } catch (error) {
      // Another program may have made a shared terminal or pipe non-blocking; there is no event to wait for on a
      // descriptor like this.
      if ((error as { code?: unknown }).code !== 'EAGAIN') throw error
      await sleep(5)
    }
  }
}

/**
 * Writes bytes as far as the descriptor takes them at once, and the rest as `writeAll`: no thread is started for a
 * short answer.
 */
export const writeNow = async (fd: number, bytes: Uint8Array): Promise<void> => {
  let at = 0
  try {
    at = writeSync(fd, bytes)
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'EAGAIN') throw error
  }
  if (at < bytes.length) await writeAll(fd, bytes.subarray(at))
}

/** The major number of `/dev/null`, `/dev/zero` and the like (Linux, admin-guide/devices.txt). */
const MEMORY_DEVICES = 1
/** The major number in a device's number, makedev(3): its bits 8 to 19; those above 4095 are not in use. */
const majorOf = (device: number): number => (device >> 8) & 0xfff

/**
 * Tells whether a descriptor is a terminal. `node:tty`, which takes longer to load than the rest of a start, is asked
 * only where it may be one: a character device that is no memory device, as `/dev/null` is.
 */
export const isTerminal = (fd: 0 | 1 | 2): boolean => {
  try {
    const stat = fstatSync(fd)
    if (!stat.isCharacterDevice() || majorOf(stat.rdev) === MEMORY_DEVICES) return false
  } catch {
    return false
  }
  return process.getBuiltinModule('node:tty').isatty(fd)
}

/** Tells the size of the terminal in characters; undefined where no output is one. */
export const terminalSize = (): { readonly cols: number; readonly rows: number } | undefined => {
  if (!isTerminal(1) && !isTerminal(2)) return undefined
  for (const stream of [process.stdout, process.stderr]) {
    if (stream.isTTY && stream.columns > 0) return { cols: stream.columns, rows: stream.rows }
  }
  return undefined
}
