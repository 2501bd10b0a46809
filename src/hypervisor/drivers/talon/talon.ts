import type { DriverOffer, HypervisorDriver } from '../../driver.ts'
import { checks } from './checks.ts'
import { unfit } from './report.ts'
import { adopt, start } from './start.ts'

/**
 * talon, our VMM (native/talon): one process, jailed. Namespaces and the user come from `wing launch`, the empty root, Landlock and seccomp
 * are its own; every file is an inherited descriptor, and the folder with the vsock sockets is all that it sees.
 *
 * `--at-end hold`: a guest that ends, by reboot too, leaves talon standing with its events, so an end while no daemon looks is read later.
 */
export const driver: HypervisorDriver = {
  name: 'talon',
  nics: [],
  boots: 'vmlinux',
  adopt,
  start: (spec, signal) => start(spec, undefined, signal),
  restore: (spec, from, signal) => start(spec, from, signal),
}

/** talon, which is in this executable: wherever KVM can run an unmodified guest. */
export const talon: DriverOffer = {
  name: 'talon',
  find: ({ kvm, accelerator }) => {
    if (accelerator === 'kvm' && kvm.usable) return { driver }
    return {
      lacks: kvm.usable ? 'it needs KVM, and the configuration says tcg' : `it needs KVM: ${kvm.reason}`,
    }
  },
  unfit,
  check: (ground, another) => checks(ground, another),
}
