import { closeSync, constants, fstatSync, openSync, readdirSync, readlinkSync, statSync } from 'node:fs'
import { nextData, nextHole } from '../../../linux/file.ts'
import { readInto, writeWhole } from '../../../linux/positional.ts'

/** What QEMU calls the memory file of `memory-backend-memfd`. */
const NAME = '/memfd:memory-backend-memfd (deleted)'

const isMemory = (link: string, bytes: number): boolean => {
  const stat = statSync(link)
  return stat.isFile() && stat.nlink === 0 && stat.size === bytes && readlinkSync(link) === NAME
}

/**
 * Opens the guest's memory as a file, of a QEMU that is ours or was another daemon's. QEMU may have been taken over and
 * may put anything in the place of its descriptor: what was opened is looked at once more. It cannot shrink: QEMU seals
 * it.
 */
export const openMemory = (pid: number, bytes: number, access: 'r' | 'r+'): number => {
  const folder = `/proc/${pid}/fd`
  const link = readdirSync(folder)
    .map((name) => `${folder}/${name}`)
    .find((candidate) => {
      try {
        return isMemory(candidate, bytes)
      } catch {
        return false
      } // closed meanwhile
    })
  if (link === undefined) throw new Error('its memory is not found')
  const fd = openSync(link, (access === 'r' ? constants.O_RDONLY : constants.O_RDWR) | constants.O_NONBLOCK)
  if (isMemory(`/proc/self/fd/${fd}`, bytes)) return fd
  closeSync(fd)
  throw new Error('its memory is not found')
}

/** What is read at once, and what is a hole when it is zero. */
const CHUNK_BYTES = 2 ** 20
const BLOCK_BYTES = 2 ** 16
const ZEROS = Buffer.alloc(BLOCK_BYTES)

/** What a copy of a guest's memory came to. */
export interface Copied {
  /**
   * A checksum of what is not zero and where it is: the same for every file that reads the same, however its holes lie.
   * It finds accidents, no more.
   */
  readonly sum: string
  /** Written. */
  readonly bytes: number
}

/**
 * Copies a guest's memory into an empty file, or into the memory of a machine that has not run. What is zero is left
 * out. Off the event loop, but for the look at each block.
 */
export const copyMemory = async (from: number, to: number, signal: AbortSignal): Promise<Copied> => {
  const { size } = fstatSync(from)
  const buffer = Buffer.allocUnsafe(CHUNK_BYTES)
  let sum = 0n
  let copied = 0
  let end = 0
  for (let data = nextData(from, 0); data !== undefined && data < size; data = nextData(from, end)) {
    end = Math.min(Math.ceil(nextHole(from, data) / BLOCK_BYTES) * BLOCK_BYTES, size)
    for (let start = data - (data % BLOCK_BYTES); start < end; start += CHUNK_BYTES) {
      signal.throwIfAborted()
      const chunk = buffer.subarray(0, Math.min(CHUNK_BYTES, end - start))
      await readInto(chunk, from, start)
      let run = 0
      for (let at = 0; at < chunk.byteLength; at += BLOCK_BYTES) {
        const block = chunk.subarray(at, at + BLOCK_BYTES)
        if (!block.equals(ZEROS.subarray(0, block.byteLength))) {
          sum = Bun.hash.xxHash64(block, sum ^ BigInt(start + at))
          continue
        }
        if (at > run) copied += await writeRun(to, chunk.subarray(run, at), start + run)
        run = at + BLOCK_BYTES
      }
      if (run < chunk.byteLength) copied += await writeRun(to, chunk.subarray(run), start + run)
    }
  }
  return { sum: sum.toString(16), bytes: copied }
}

const writeRun = async (to: number, bytes: Uint8Array, position: number): Promise<number> => {
  await writeWhole(to, bytes, position)
  return bytes.byteLength
}
