import { checked } from './errno.ts'
import { host } from './host-library.ts'

/** Renames, unless there is something at `to` already: renameat2(2), RENAME_NOREPLACE. @throws EEXIST, EXDEV, ENOENT */
export const renameNoReplace = (from: string, to: string): void => {
  const old = Buffer.from(from)
  const fresh = Buffer.from(to)
  checked(host().aerie_rename_noreplace(old, old.length, fresh, fresh.length), 'renameat2', to)
}

/** Gives a file to somebody, or a link itself, not what it points to: lchown(2). @throws EPERM, ENOENT */
export const lchown = (path: string, uid: number, gid: number): void => {
  const bytes = Buffer.from(path)
  checked(host().aerie_lchown(bytes, bytes.length, uid, gid), 'lchown', path)
}

/** Room on a file system. */
export interface Space {
  readonly totalBytes: number
  /** Free, with what is kept for root. */
  readonly freeBytes: number
  /** Free for an ordinary user. */
  readonly availableBytes: number
  /** Which file system: linux/magic.h. */
  readonly magic: number
}

/** Looks at the file system of a path: statfs(2). @throws ENOENT */
export const spaceOf = (path: string): Space => {
  const bytes = Buffer.from(path)
  const values = new BigUint64Array(4)
  checked(host().aerie_space(bytes, bytes.length, values, values.byteLength), 'statfs', path)
  const [totalBytes = 0, freeBytes = 0, availableBytes = 0, magic = 0] = [...values].map(Number)
  return { totalBytes, freeBytes, availableBytes, magic }
}

/**
 * Opens a file below a folder, never outside of it and over no link, whatever the path says and whoever changes the
 * folder meanwhile: openat2(2), RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS. Close-on-exec; does not wait for a FIFO's
 * other end.
 *
 * @param folder  a descriptor
 * @param flags  of open(2), from `constants` of node:fs
 * @throws EXDEV: it leads out; ELOOP: a link in it; EAGAIN: a rename raced, try again; ENOENT
 */
export const openBeneath = (folder: number, path: string, flags: number, mode = 0): number => {
  const bytes = Buffer.from(path)
  return checked(host().aerie_open_beneath(folder, bytes, bytes.length, flags, mode), 'openat2', path)
}
