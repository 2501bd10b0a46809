import { checked } from './errno.ts'
import { host } from './host-library.ts'

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
