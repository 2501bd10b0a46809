import { checked } from './errno.ts'
import { host } from './host-library.ts'

/**
 * A memory file with these bytes that nobody can change any more, at position 0, close-on-exec: memfd_create(2).
 *
 * @param name  for people, in `/proc/PID/fd`; 1 to 249 bytes
 * @param executable  a program or a library
 * @throws ENOMEM; EACCES where the sysctl vm.memfd_noexec forbids executable ones; EINVAL for the name
 */
export const memfdSealed = (name: string, content: Uint8Array, { executable = false } = {}): number => {
  const label = Buffer.from(name)
  return checked(host().aerie_memfd_sealed(label, label.length, content, content.length, Number(executable)), 'memfd_create')
}
