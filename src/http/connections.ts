import { closeSync, openSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { fault } from '../lib/fault.ts'
import { connectionsTo, endConnections } from '../linux/tcp-connections.ts'

export const daemonBusy = fault(
  'daemon_busy',
  'unavailable',
  {},
  () => 'Cannot serve this request: the daemon has as many connections over TCP as it takes',
  'Close some, or use the Unix socket',
)

/** How many connections a listener has at most, and how long one may be without a request. */
export interface ConnectionLimits {
  readonly max: number
  readonly idleMs: number
}

const MAX = 1024
const IDLE_MS = 60_000
/** Descriptors are counted this often; connections are looked at where many are new, and now and then. */
const COUNT_MS = 250
const NEW_MANY = 64
const LOOK_MS = 5000
/** Descriptors that are kept for looking when all others are used up. */
const SPARES = 8

const descriptors = (): number => {
  const { size } = statSync('/proc/self/fd') // their number, since Linux 6.2
  return size > 0 ? size : readdirSync('/proc/self/fd').length
}

const descriptorsMax = (): number =>
  Number(/^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'latin1'))?.[1] ?? 4096)

/**
 * A quarter of the descriptors is the most that callers over TCP have: the rest is the machines' and the Unix socket's.
 */
export const defaultLimits = (): ConnectionLimits => ({
  max: Math.min(MAX, Math.floor(descriptorsMax() / 4)),
  idleMs: IDLE_MS,
})

/**
 * The connections of one TCP listener. Bun has no word in who connects, so they are looked at from outside: who has no
 * request under way for too long goes, and so does whoever was idle longest where there are too many. A connection with
 * a request is never ended; more of those than there may be are refused.
 */
export class Connections {
  readonly #port: number
  readonly #limits: ConnectionLimits
  /** Requests and streams that are under way, by the port at the other end. */
  readonly #active = new Map<number, number>()
  /** Since when a connection that was seen has had no request. */
  #idleSince = new Map<string, number>()
  readonly #timer: ReturnType<typeof setInterval>
  #spares: number[] = []
  #looked = { at: 0, descriptors: 0 }

  constructor(port: number, limits: ConnectionLimits) {
    this.#port = port
    this.#limits = limits
    this.#keepSpares()
    this.#timer = setInterval(() => {
      this.#tick()
    }, COUNT_MS)
    this.#timer.unref()
  }

  /** Takes a request; the answer is to be called when it is over. @throws `daemon_busy` */
  enter(peerPort: number): () => void {
    if (this.#active.size >= this.#limits.max && !this.#active.has(peerPort)) throw daemonBusy({})
    this.#active.set(peerPort, (this.#active.get(peerPort) ?? 0) + 1)
    let over = false
    return () => {
      if (over) return
      over = true
      const left = (this.#active.get(peerPort) ?? 1) - 1
      if (left === 0) this.#active.delete(peerPort)
      else this.#active.set(peerPort, left)
    }
  }

  #keepSpares(): void {
    try {
      while (this.#spares.length < SPARES) this.#spares.push(openSync('/dev/null', 'r'))
    } catch {
      // All are used up: there will be some when connections have been ended.
    }
  }

  #tick(): void {
    try {
      const many = descriptors() - this.#looked.descriptors >= NEW_MANY
      if (!many && performance.now() - this.#looked.at < LOOK_MS) return
      this.look()
    } catch {
      // Not even a spare one was left; the next time is soon.
    }
  }

  /** Ends what has been idle too long, and of too many those that have been idle longest. */
  look(now = performance.now()): void {
    for (const fd of this.#spares.splice(0)) closeSync(fd)
    let ended = 0
    try {
      const connections = connectionsTo(this.#port)
      const idleSince = new Map<string, number>()
      for (const { inode, peerPort } of connections)
        if (!this.#active.has(peerPort)) idleSince.set(inode, this.#idleSince.get(inode) ?? now)
      this.#idleSince = idleSince
      const longest = [...idleSince].sort(([, a], [, b]) => a - b)
      const tooMany = connections.length - this.#limits.max
      const end = longest.filter(([, since], at) => at < tooMany || now - since >= this.#limits.idleMs)
      ended = endConnections(new Set(end.map(([inode]) => inode)))
    } finally {
      this.#keepSpares()
      // What has been ended is closed in a moment, and its descriptors are no room for as many new ones.
      this.#looked = { at: performance.now(), descriptors: descriptors() - ended }
    }
  }

  close(): void {
    clearInterval(this.#timer)
    for (const fd of this.#spares.splice(0)) closeSync(fd)
  }
}
