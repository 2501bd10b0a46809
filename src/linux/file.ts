import { closeSync, openSync, renameSync, writeFileSync } from 'node:fs'
import { checked, hasCode } from './errno.ts'
import { host } from './host-library.ts'

/** Checks an offset or a length in bytes: what a number holds exactly. */
const whole = (bytes: number): number => {
  if (!Number.isSafeInteger(bytes) || bytes < 0) throw new RangeError(`${bytes} is not a number of bytes`)
  return bytes
}

/**
 * Makes the whole of `to` share the blocks of `from`: ioctl_ficlone(2). @throws EOPNOTSUPP, EXDEV, EINVAL, ENOTTY: the
 * caller copies then
 */
export const reflink = (to: number, from: number): void => {
  checked(host().aerie_reflink(to, from), 'FICLONE')
}

/**
 * Copies inside the kernel, at most 4 MiB a call: copy_file_range(2). It takes a disk's time when memory is full of
 * unwritten pages: for Workers and small files.
 *
 * @returns bytes copied, 0 at the end of `from`
 * @throws EXDEV, EOPNOTSUPP: this pair of file systems cannot; ENOSPC
 */
export const copyRange = (from: number, fromOffset: number, to: number, toOffset: number, length: number): number =>
  checked(host().aerie_copy_range(from, whole(fromOffset), to, whole(toOffset), whole(length)), 'copy_file_range')

/**
 * Gives back the blocks of a range; it reads as zeros then, and the file's length stays: fallocate(2),
 * FALLOC_FL_PUNCH_HOLE. @throws EOPNOTSUPP, ENOSPC
 */
export const punchHole = (fd: number, offset: number, length: number): void => {
  checked(host().aerie_punch_hole(fd, whole(offset), whole(length)), 'fallocate')
}

/**
 * Finds where data begins at or after `offset`; undefined where there is none: lseek(2), SEEK_DATA. Moves the file's
 * position.
 */
export const nextData = (fd: number, offset: number): number | undefined => {
  try {
    return checked(host().aerie_seek_data(fd, whole(offset)), 'lseek')
  } catch (error) {
    if (hasCode(error, 'ENXIO')) return undefined
    throw error
  }
}

/**
 * Finds where the data at `offset` ends, at most the end of the file: lseek(2), SEEK_HOLE. @throws ENXIO: `offset` is
 * beyond it
 */
export const nextHole = (fd: number, offset: number): number =>
  checked(host().aerie_seek_hole(fd, whole(offset)), 'lseek')

/** Counts the bytes on disk, holes not counted; blocks that clones share count for each. */
export const allocatedBytes = (fd: number): number => checked(host().aerie_allocated_bytes(fd), 'statx')

/**
 * Writes a file out to its device: fsync(2). It takes the device's time, so it is for small files whose loss would
 * break a promise, and for folders after a rename.
 */
export const fsync = (fd: number): void => {
  checked(host().aerie_fsync(fd), 'fsync')
}

/** Writes a small file whole or not at all: after a crash there is the old one or the new one. */
export const replaceFile = (path: string, text: string): void => {
  const temporary = `${path}.new`
  const fd = openSync(temporary, 'w', 0o600)
  try {
    writeFileSync(fd, text)
    fsync(fd)
  } finally {
    closeSync(fd)
  }
  renameSync(temporary, path)
}
