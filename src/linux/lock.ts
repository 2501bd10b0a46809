import { openSync } from 'node:fs'
import { checked, hasCode } from './errno.ts'
import { closeFd } from './fd.ts'
import { host } from './host-library.ts'

/**
 * Takes the lock of a file, made if it is not there, for the life of this process: flock(2). Undefined where another
 * process has it. The kernel lets go of it when we end, however that happens.
 *
 * @returns the descriptor that holds it
 */
export const tryLock = (path: string): number | undefined => {
  const fd = openSync(path, 'a', 0o600)
  try {
    checked(host().aerie_flock_try(fd, 1), 'flock', path)
    return fd
  } catch (error) {
    closeFd(fd)
    if (hasCode(error, 'EAGAIN', 'EWOULDBLOCK')) return undefined
    throw error
  }
}
