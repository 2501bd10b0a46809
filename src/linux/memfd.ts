import { checked } from './errno.ts'
import { host } from './host-library.ts'

/**
 * Makes a memory file with these bytes that nobody can change any more, at position 0, close-on-exec: memfd_create(2).
 *
 * @param name  for people, in `/proc/PID/fd`; 1 to 249 bytes
 * @param executable  a program or a library
 * @throws ENOMEM; EACCES where the sysctl vm.memfd_noexec forbids executable ones; EINVAL for the name
 */
export const memfdSealed = (name: string, content: Uint8Array, { executable = false } = {}): number => {
  const label = Buffer.from(name)
  return checked(
    host().aerie_memfd_sealed(label, label.length, content, content.length, Number(executable)),
    'memfd_create',
  )
}

/**
 * Makes a memory file of `size` bytes, all of them holes, that may be sealed later, close-on-exec: memfd_create(2). The
 * memory of a guest.
 *
 * @param name  for people, in `/proc/PID/fd`; 1 to 249 bytes
 * @throws ENOMEM; EINVAL for the name or a negative size
 */
export const memfdEmpty = (name: string, size: number): number => {
  const label = Buffer.from(name)
  return checked(host().aerie_memfd_empty(label, label.length, size), 'memfd_create')
}
