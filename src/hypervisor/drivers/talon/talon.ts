import type { DriverOffer, HypervisorDriver } from '../../driver.ts'
import { checks } from './checks.ts'
import { lacksLandlock, unfit } from './report.ts'
import { adopt, start } from './start.ts'

/**
 * talon, our VMM (native/talon): one process, jailed. Namespaces and the user come from `wing launch`, the empty root, Landlock and seccomp
 * are its own; every file is an inherited descriptor, and the folder with the vsock sockets is all that it sees.
 *
 * `--at-end hold`: a guest that ends, by reboot too, leaves talon standing with its events, so an end while no daemon looks is read later.
 */
const driverWith = (landlockAbiMin: number): HypervisorDriver => ({
  name: 'talon',
  nics: [],
  boots: 'vmlinux',
  adopt,
  start: (spec, signal) => start(spec, undefined, landlockAbiMin, signal),
  restore: (spec, from, signal) => start(spec, from, landlockAbiMin, signal),
})

/** talon on whatever Landlock the kernel has. */
export const driver = driverWith(0)

/** talon, which is in this executable: wherever KVM can run an unmodified guest. */
export const talon: DriverOffer = {
  name: 'talon',
  find: ({ kvm, accelerator, config }) => {
    if (accelerator === 'kvm' && kvm.usable) {
      const lacks = lacksLandlock(config.landlock_abi_min)
      return lacks === undefined ? { driver: driverWith(config.landlock_abi_min) } : { lacks }
    }
    return {
      lacks: kvm.usable ? 'it needs KVM, and the configuration says tcg' : `it needs KVM: ${kvm.reason}`,
    }
  },
  unfit,
  check: (ground, another) => checks(ground, another),
}
