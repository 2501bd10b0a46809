import { checked } from './errno.ts'
import { host } from './host-library.ts'

/** Gives back the blocks of a range; it reads as zeros then, and the file's length stays: fallocate(2), FALLOC_FL_PUNCH_HOLE. @throws EOPNOTSUPP, ENOSPC */
export const punchHole = (fd: number, offset: number, length: number): void => {
  checked(host().aerie_punch_hole(fd, BigInt(offset), BigInt(length)), 'fallocate')
}
