import { statfsSync } from 'node:fs'
import { checked } from './errno.ts'
import { host } from './host-library.ts'

/** Makes a network namespace that lives as long as it is mounted at `path`, a file that exists. @throws EPERM */
export const makeNetns = (path: string): void => {
  const bytes = Buffer.from(path)
  checked(host().aerie_netns_make(bytes, bytes.length), 'unshare', path)
}

/** Takes away what is mounted at `path`: umount2(2). @throws EINVAL: nothing is; EPERM; ENOENT */
export const unmount = (path: string): void => {
  const bytes = Buffer.from(path)
  checked(host().aerie_unmount(bytes, bytes.length), 'umount', path)
}

/** What a mounted namespace is, by statfs(2): NSFS_MAGIC of linux/magic.h. */
const NSFS_MAGIC = 0x6e736673

/** Tells whether a path leads to a namespace, of whatever kind, without opening it. @throws ENOENT, ENOTDIR, EACCES */
export const isNamespace = (path: string): boolean => statfsSync(path).type === NSFS_MAGIC
