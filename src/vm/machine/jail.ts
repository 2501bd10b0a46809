import { statSync } from 'node:fs'
import type { Config } from '../../config.ts'
import type { JailSpec } from '../../hypervisor/driver.ts'

/**
 * The first of the uids that machines run as; a vm's is this plus its CID. They are above what adduser(8) and subuid(5)
 * hand out by default.
 */
const UID_BASE = 0x4165_0000

/**
 * Tells the user that a vm's processes run as, theirs alone; undefined where the daemon is not root and everything is
 * the caller's anyway.
 */
export const jailOf = (config: Config, vm: { readonly cid: number }): JailSpec | undefined => {
  if (process.getuid?.() !== 0 || !config.jail) return undefined
  const kvm = statSync('/dev/kvm', { throwIfNoEntry: false })
  const uid = UID_BASE + vm.cid
  return { uid, gid: uid, groups: kvm && kvm.gid !== 0 ? [kvm.gid] : [] }
}
