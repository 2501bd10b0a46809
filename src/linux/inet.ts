import { checked } from './errno.ts'
import { host } from './host-library.ts'

const AF_INET = 2
const AF_INET6 = 10

/** Writes a `sockaddr_in` or `sockaddr_in6` (ip(7), ipv6(7)): an address of 4 or 16 bytes, and a port. */
export const socketAddress = (address: Uint8Array, port: number): Uint8Array => {
  const bytes = Buffer.alloc(address.length === 4 ? 16 : 28)
  bytes.writeUInt16LE(address.length === 4 ? AF_INET : AF_INET6)
  bytes.writeUInt16BE(port, 2)
  bytes.set(address, address.length === 4 ? 4 : 8)
  return bytes
}

/** Makes a bound stream socket take connections: listen(2). */
export const listenSocket = (fd: number, backlog = 1024): void => {
  checked(host().aerie_listen(fd, backlog), 'listen')
}

/** Tells the port that a bound socket has: getsockname(2). */
export const portOf = (fd: number): number => {
  const address = Buffer.alloc(28)
  checked(host().aerie_socket_name(fd, address, address.length), 'getsockname')
  return address.readUInt16BE(2)
}

/**
 * Makes a close-on-exec socket, socket(2), in the network namespace of a descriptor where one is given. @throws EPERM,
 * EAFNOSUPPORT, EMFILE
 */
export const socketIn = (netns: number | undefined, domain: number, kind: number, protocol: number): number =>
  checked(host().aerie_socket_in(netns ?? -1, domain, kind, protocol), 'socket')

/** Gives a socket the address that the bytes of a `sockaddr` say: bind(2). @throws EADDRINUSE, EADDRNOTAVAIL, EACCES */
export const bindSocket = (fd: number, address: Uint8Array): void => {
  checked(host().aerie_bind(fd, address, address.length), 'bind')
}

/** Sets an option to these bytes: setsockopt(2). */
export const setOption = (fd: number, level: number, option: number, value: Uint8Array): void => {
  checked(host().aerie_set_option(fd, level, option, value, value.length), 'setsockopt')
}
