import { closeFd } from '../../linux/fd.ts'
import { hasCode } from '../../linux/errno.ts'
import { bindSocket, listenSocket, setOption, socketAddress, socketIn } from '../../linux/inet.ts'
import { u32 } from '../../linux/netlink/message.ts'
import { bytesV4, readV4, readV6 } from '../address.ts'
import { type Bridged, gateway6Of } from '../network-row.ts'

const AF_INET = 2
const AF_INET6 = 10
const STREAM = 1
const DATAGRAM = 2
const RAW = 3
const ICMPV6 = 58
const SOL_SOCKET = 1
const REUSE_ADDRESS = 2
const BROADCAST = 6
const BIND_TO_DEVICE = 25
const DHCP_PORT = 67
const DNS_PORT = 53

/** A descriptor for the helper of a network, and the flag that says what it is. */
export interface HelperSocket {
  readonly flag: '--dhcp-fd' | '--dns-udp-fd' | '--dns-tcp-fd' | '--ra-fd'
  readonly fd: number
}

/**
 * Opens what the helper of a network answers on (docs/network-helper.md): the daemon may, and the helper may not. A port that somebody
 * else of this host has is left out, and named.
 */
export const openHelperSockets = (
  row: Bridged,
  netns: number | undefined,
): { readonly sockets: HelperSocket[]; readonly taken: string[] } => {
  const sockets: HelperSocket[] = []
  const taken: string[] = []
  const open = (
    flag: HelperSocket['flag'],
    what: string,
    domain: number,
    kind: number,
    protocol: number,
    set: (fd: number) => void,
  ) => {
    const fd = socketIn(netns, domain, kind, protocol)
    try {
      set(fd)
      sockets.push({ flag, fd })
    } catch (error) {
      closeFd(fd)
      if (!hasCode(error, 'EADDRINUSE')) throw error
      taken.push(what)
    }
  }
  const onBridge = (fd: number): void => {
    setOption(fd, SOL_SOCKET, BIND_TO_DEVICE, Buffer.from(`${row.bridge}\0`))
  }
  const reused = (fd: number): void => {
    setOption(fd, SOL_SOCKET, REUSE_ADDRESS, u32(1))
  }
  try {
    if (row.spec.dhcp)
      open('--dhcp-fd', 'port 67', AF_INET, DATAGRAM, 0, (fd) => {
        onBridge(fd)
        reused(fd)
        setOption(fd, SOL_SOCKET, BROADCAST, u32(1))
        bindSocket(fd, socketAddress(bytesV4(0), DHCP_PORT))
      })
    const gateway = row.gateway === null ? undefined : readV4(row.gateway)
    const gateway6 = gateway6Of(row)
    const addresses = [
      ...(gateway === undefined ? [] : [bytesV4(gateway)]),
      ...(gateway6 === null ? [] : [readV6(gateway6) ?? Buffer.alloc(16)]),
    ]
    for (const address of addresses) {
      const domain = address.length === 4 ? AF_INET : AF_INET6
      const say = `port 53 of ${domain === AF_INET ? row.gateway : gateway6}`
      open('--dns-udp-fd', say, domain, DATAGRAM, 0, (fd) => {
        bindSocket(fd, socketAddress(address, DNS_PORT))
      })
      open('--dns-tcp-fd', say, domain, STREAM, 0, (fd) => {
        reused(fd)
        bindSocket(fd, socketAddress(address, DNS_PORT))
        listenSocket(fd)
      })
    }
    if (gateway6 !== null) open('--ra-fd', 'router advertisements', AF_INET6, RAW, ICMPV6, onBridge)
    return { sockets, taken }
  } catch (error) {
    for (const { fd } of sockets) closeFd(fd)
    throw error
  }
}
