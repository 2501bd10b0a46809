import { closeSync, openSync, rmSync } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { hasCode } from './errno.ts'
import { nextData, nextHole, reflink } from './file.ts'
import { writeWhole } from './positional.ts'

/** Bytes in memory while a file is copied. */
const CHUNK_BYTES = 4 * 2 ** 20
/** What a file system says that cannot share blocks; EINVAL also for a pair that differs in how it keeps them. */
const CANNOT_SHARE = ['EOPNOTSUPP', 'EXDEV', 'EINVAL', 'ENOTTY', 'ENOSYS'] as const

/** How a file was cloned, and what that took, in bytes. */
export interface Clone {
  /** Whether the blocks are shared (at once, and no room taken) or were copied. */
  readonly how: 'reflink' | 'copy'
  readonly bytes: number
  /** The bytes that were written: 0 with reflink, and a copy leaves the holes of a sparse file out. */
  readonly copiedBytes: number
}

/** Settings of a clone. */
export interface CloneOptions {
  /** Permission bits of the new file. */
  readonly mode?: number | undefined
  /** The new content has reached the disk when the promise resolves. */
  readonly durable?: boolean | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * Makes `to`, which must not be there, with the content of `from`: shared where the file system can, else copied with
 * its holes kept, off the event loop. What fails half way leaves no file.
 *
 * @throws EEXIST, ENOENT, ENOSPC, EACCES; the signal's reason
 */
export const cloneFile = async (
  from: string,
  to: string,
  { mode = 0o600, durable = false, signal }: CloneOptions = {},
): Promise<Clone> => {
  signal?.throwIfAborted()
  await using source = await open(from, 'r')
  await using target = await open(to, 'wx', mode)
  try {
    const { size } = await source.stat()
    const shared = tryReflink(target.fd, source.fd)
    const copiedBytes = shared ? 0 : await copyData(source, target, size, signal)
    if (durable) await target.sync()
    return { how: shared ? 'reflink' : 'copy', bytes: size, copiedBytes }
  } catch (error) {
    rmSync(to, { force: true })
    throw error
  }
}

const tryReflink = (to: number, from: number): boolean => {
  try {
    reflink(to, from)
    return true
  } catch (error) {
    if (hasCode(error, ...CANNOT_SHARE)) return false
    throw error
  }
}

const copyData = async (
  source: FileHandle,
  target: FileHandle,
  size: number,
  signal: AbortSignal | undefined,
): Promise<number> => {
  await target.truncate(size)
  const buffer = Buffer.allocUnsafe(Math.min(CHUNK_BYTES, Math.max(size, 1)))
  let copied = 0
  for (let start = nextData(source.fd, 0); start !== undefined && start < size; ) {
    const end = Math.min(nextHole(source.fd, start), size)
    while (start < end) {
      signal?.throwIfAborted()
      const { bytesRead } = await source.read(buffer, 0, Math.min(buffer.length, end - start), start)
      if (bytesRead === 0) return copied // it became shorter under our hands
      await writeWhole(target.fd, buffer.subarray(0, bytesRead), start)
      start += bytesRead
      copied += bytesRead
    }
    start = nextData(source.fd, end)
  }
  return copied
}

/**
 * Tells whether files of this folder's file system can share blocks: `sample` is one that is there, `trial` a name in
 * the same folder for a moment.
 */
export const reflinkSupport = (sample: string, trial: string): boolean => {
  const source = openSync(sample, 'r')
  try {
    const target = openSync(trial, 'wx', 0o600)
    try {
      return tryReflink(target, source)
    } finally {
      closeSync(target)
      rmSync(trial, { force: true })
    }
  } finally {
    closeSync(source)
  }
}
