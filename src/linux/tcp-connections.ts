import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { checked } from './errno.ts'
import { host } from './host-library.ts'

/** A connection that somebody has made to a port of ours, told apart by the inode of its socket. */
export interface TcpConnection {
  readonly inode: string
  /** The port at the other end. */
  readonly peerPort: number
}

/** States of a connection that has gone, or was never made: TIME_WAIT, CLOSE, LISTEN (include/net/tcp_states.h). */
const GONE: ReadonlySet<string> = new Set(['06', '07', '0A'])

const portOf = (address: string | undefined): number => Number.parseInt(address?.split(':')[1] ?? '', 16)

/** Reads the connections to a port of this network namespace that a process has accepted: proc_pid_net(5). */
export const connectionsTo = (port: number): TcpConnection[] => {
  const hex = `:${port.toString(16).toUpperCase().padStart(4, '0')}`
  const found: TcpConnection[] = []
  for (const file of ['/proc/self/net/tcp', '/proc/self/net/tcp6']) {
    let text: string
    try {
      text = readFileSync(file, 'latin1')
    } catch {
      continue // a kernel without IPv6
    }
    for (const line of text.split('\n')) {
      if (!line.includes(hex)) continue
      const [, local, peer, state = '', , , , , , inode = '0'] = line.trim().split(/\s+/)
      if (portOf(local) === port && !GONE.has(state) && inode !== '0') found.push({ inode, peerPort: portOf(peer) })
    }
  }
  return found
}

/** Ends connections whose descriptors are ours; whoever holds them sees their end. Tells how many. */
export const endConnections = (inodes: ReadonlySet<string>): number => {
  let ended = 0
  if (inodes.size === 0) return ended
  for (const fd of readdirSync('/proc/self/fd')) {
    let target: string
    try {
      target = readlinkSync(`/proc/self/fd/${fd}`)
    } catch {
      continue // the one that the folder was read by
    }
    const inode = /^socket:\[(\d+)\]$/.exec(target)?.[1]
    if (inode === undefined || !inodes.has(inode)) continue
    try {
      checked(host().aerie_shutdown(Number(fd)), 'shutdown')
      ended++
    } catch {
      // It has ended by itself.
    }
  }
  return ended
}
