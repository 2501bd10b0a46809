import { checked } from './errno.ts'
import { host } from './host-library.ts'

/** Closes a descriptor: close(2). @throws EBADF, which is always a bug of the caller */
export const closeFd = (fd: number): void => {
  checked(host().aerie_close(fd), 'close')
}

/** Makes a close-on-exec copy at the lowest free number. @throws EBADF, EMFILE */
export const dupCloexec = (fd: number): number => checked(host().aerie_dup_cloexec(fd), 'fcntl')

/** Sets whether programs started later inherit a descriptor. @throws EBADF */
export const setCloexec = (fd: number, on: boolean): void => {
  checked(host().aerie_set_cloexec(fd, Number(on)), 'fcntl')
}

/** Sets O_NONBLOCK of the open file: every copy of the descriptor sees it, in other processes too. @throws EBADF */
export const setNonblock = (fd: number, on: boolean): void => {
  checked(host().aerie_set_nonblock(fd, Number(on)), 'fcntl')
}
