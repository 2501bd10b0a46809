import { checked, hasCode } from './errno.ts'
import { host } from './host-library.ts'

/** One extended attribute of a file (xattr(7)). */
export interface Xattr {
  /** The name as the kernel has it: bytes, which need not be UTF-8. */
  readonly name: Buffer
  readonly value: Buffer
}

/** XATTR_LIST_MAX and XATTR_SIZE_MAX, linux/limits.h: nothing is longer, so one call is always enough. */
const BYTES_MAX = 65_536
let room: { readonly names: Buffer; readonly value: Buffer } | undefined

/**
 * Reads the extended attributes of a path itself, a link's own included, sorted by name: llistxattr(2), lgetxattr(2).
 * None where the file system has no such thing. One that goes away meanwhile, and one that this user may not read, is
 * not there.
 *
 * @throws ENOENT, EACCES: the path
 */
export const xattrsOf = (path: string | Buffer): Xattr[] => {
  const at = typeof path === 'string' ? Buffer.from(path) : path
  const shown = at.toString()
  const { names, value } = (room ??= {
    names: Buffer.allocUnsafeSlow(BYTES_MAX),
    value: Buffer.allocUnsafeSlow(BYTES_MAX),
  })
  let size: number
  try {
    size = checked(host().aerie_llistxattr(at, at.length, names, names.length), 'llistxattr', shown)
  } catch (error) {
    if (hasCode(error, 'EOPNOTSUPP')) return []
    throw error
  }
  const found: Xattr[] = []
  for (let from = 0, end: number; from < size; from = end + 1) {
    end = names.indexOf(0, from)
    const name = names.subarray(from, end + 1) // with its NUL, as the call wants it
    try {
      const length = checked(
        host().aerie_lgetxattr(at, at.length, name, name.length, value, value.length),
        'lgetxattr',
        shown,
      )
      found.push({ name: Buffer.from(names.subarray(from, end)), value: Buffer.from(value.subarray(0, length)) })
    } catch (error) {
      if (!hasCode(error, 'ENODATA', 'EPERM', 'EACCES', 'EOPNOTSUPP')) throw error
    }
  }
  return found.sort((a, b) => Buffer.compare(a.name, b.name))
}
