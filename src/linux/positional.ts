import { fsync as fsyncWith, read, write } from 'node:fs'
import { promisify } from 'node:util'

/* Whole reads and writes at a place of an open file, off the event loop. The file's own position plays no part. */

const pread = promisify(read)
const pwrite = promisify(write)

/** fsync(2). */
export const fsync: (fd: number) => Promise<void> = promisify(fsyncWith)

/** Fills the buffer. @throws where the file ends before */
export const readInto = async (buffer: Uint8Array, fd: number, position: number): Promise<void> => {
  for (let at = 0; at < buffer.byteLength; ) {
    const { bytesRead } = await pread(fd, buffer, at, buffer.byteLength - at, position + at)
    if (bytesRead === 0) throw new Error('a file became shorter while it was read')
    at += bytesRead
  }
}

/** Writes all bytes at a position. @throws ENOSPC, EFBIG, EIO */
export const writeWhole = async (fd: number, bytes: Uint8Array, position: number): Promise<void> => {
  for (let at = 0; at < bytes.byteLength; )
    at += (await pwrite(fd, bytes, at, bytes.byteLength - at, position + at)).bytesWritten
}
