import type { DriverOffer } from '../../driver.ts'
import { checks } from './checks.ts'
import { lacksLandlock, unfit } from './report.ts'
import { driverWith } from './start.ts'

/** Runs talon on whatever Landlock the kernel has. */
export const driver = driverWith(0)

/** Offers talon, which is in this executable, wherever KVM can run an unmodified guest. */
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
