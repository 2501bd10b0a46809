import { checked } from './errno.ts'
import { host } from './host-library.ts'

/** The flags and requests of linux/if_tun.h. */
const IFF_TAP = 0x0002
const IFF_NO_PI = 0x1000
const IFF_VNET_HDR = 0x4000
const IFF_MULTI_QUEUE = 0x0100

const flagsOf = (queues: number): number => IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (queues > 1 ? IFF_MULTI_QUEUE : 0)

/**
 * Makes a tap in a network namespace (absent: our own) and opens its queues, whose packets carry a `virtio_net_hdr_v1`.
 * It goes with the last of the descriptors, in whatever process, and is down and in no bridge yet.
 *
 * @throws EBUSY: there is a tap of this name, and somebody has it; EPERM; ERANGE: a name of more than 15 bytes; ENOENT:
 * no `/dev/net/tun`
 */
export const openTap = (name: string, queues = 1, netns?: number): number[] => {
  const bytes = Buffer.from(name)
  const open = () =>
    checked(host().aerie_tap_open(netns ?? -1, bytes, bytes.length, flagsOf(queues)), 'TUNSETIFF', name)
  return Array.from({ length: queues }, open)
}

/** Sets up a macvtap's open character device as a tap like those of `openTap`. */
export const attachMacvtap = (fd: number, name: string, queues = 1): void => {
  const bytes = Buffer.from(name)
  checked(host().aerie_tap_attach(fd, bytes, bytes.length, flagsOf(queues)), 'TUNSETIFF', name)
}
