import { Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { checked } from './errno.ts'
import { host } from './host-library.ts'

/** Descriptors of one message at most: `FDS_MAX` of native/host/src/message.rs. */
export const MESSAGE_FDS_MAX = 16
const LEAVE = 0xffff_ffff // chown(2): this id stays as it is

/** Makes two connected, blocking, close-on-exec sockets: socketpair(2). @throws EMFILE */
export const socketPair = (kind: 'stream' | 'packets' = 'stream'): [number, number] => {
  const pair = new Int32Array(2)
  checked(host().aerie_socketpair(kind === 'packets' ? 1 : 0, pair), 'socketpair')
  const [a, b] = pair
  if (a === undefined || b === undefined) throw new RangeError('socketpair: no pair')
  return [a, b]
}

/** Who may connect to a Unix socket, and how many may wait to be accepted. */
export interface ListenOptions {
  /** Permission bits, exactly: the umask plays no part. */
  readonly mode: number
  readonly uid?: number | undefined
  readonly gid?: number | undefined
  readonly backlog?: number | undefined
}

/**
 * Makes a listening Unix stream socket, for `Bun.listen({ fd })`. A file that a dead process left is replaced; nobody
 * can connect before mode and owner are right.
 *
 * @throws EADDRINUSE: somebody listens there; EEXIST: there is something that is not a socket; ENAMETOOLONG: above 107 bytes;
 *   ENOENT: no such folder; EPERM: may not give it to that owner
 */
export const unixListen = (path: string, { mode, uid = LEAVE, gid = LEAVE, backlog = 1024 }: ListenOptions): number => {
  const bytes = Buffer.from(path)
  return checked(host().aerie_unix_listen(bytes, bytes.length, mode, uid, gid, backlog), 'unix_listen', path)
}

/** Who connected, by the kernel's word. `pid` is 0 where it lives outside our pid namespace. */
export interface Peer {
  readonly pid: number
  readonly uid: number
  readonly gid: number
}

/**
 * Tells who the other end of a Unix socket is, as it was when it connected: SO_PEERCRED, unix(7). @throws ENOTSOCK,
 * EBADF
 */
export const peerOf = (fd: number): Peer => {
  const ids = new Uint32Array(3)
  checked(host().aerie_peer(fd, ids, ids.byteLength), 'getsockopt')
  const [pid = 0, uid = LEAVE, gid = LEAVE] = ids
  return { pid, uid, gid }
}

/**
 * Sends bytes (1 or more) and, with the first of them, copies of descriptors: SCM_RIGHTS, unix(7). Never waits.
 *
 * @returns bytes taken, which may be fewer
 * @throws EAGAIN: the socket is full; EPIPE: nobody is there; EINVAL: no bytes, or too many descriptors
 */
export const sendFds = (socket: number, data: Uint8Array, fds: readonly number[]): number => {
  const numbers = Int32Array.from(fds)
  return checked(host().aerie_send_fds(socket, data, data.length, numbers, numbers.length), 'sendmsg')
}

/**
 * Receives into `data`, with the descriptors that came (close-on-exec, the caller's to close). Never waits. Zero bytes:
 * the end.
 *
 * @throws EAGAIN: nothing there; EMSGSIZE: more than `MESSAGE_FDS_MAX` came, and all were closed
 */
export const receiveFds = (socket: number, data: Uint8Array): { readonly bytes: number; readonly fds: number[] } => {
  const fds = new Int32Array(MESSAGE_FDS_MAX)
  const count = Uint32Array.of(MESSAGE_FDS_MAX)
  const bytes = checked(host().aerie_recv_fds(socket, data, data.length, fds, count), 'recvmsg')
  return { bytes, fds: [...fds.subarray(0, count[0] ?? 0)] }
}

/** Bun's sockets have their descriptor here, as Node's have. */
const WithHandle = Type.Object({ _handle: Type.Object({ fd: Type.Integer({ minimum: 0 }) }) })

/** Tells the descriptor of a socket of `node:net`. */
export const descriptorOf = (socket: unknown): number => {
  if (!Value.Check(WithHandle, socket)) throw new Error('the socket has no descriptor')
  return socket._handle.fd
}
