import { parseBandwidth } from '../lib/bytes.ts'

/** What each card of a vm may do a second, bytes; undefined: as fast as it can. */
export interface Bandwidth {
  readonly download: number | undefined
  readonly upload: number | undefined
}

/** The share that a vm has by its CPUs where it says nothing. */
export interface Share {
  readonly vcpus: number
  readonly cpus: number
  readonly oversubscription: number
  /** What the host's uplink does, bytes a second. */
  readonly capacity: number
}

/** The slowest card: with less not even the answer to a name comes in time. */
const BYTES_PER_S_MIN = 8192
/** 100 Gb/s, which no tap does. */
const BYTES_PER_S_MAX = 12_500_000_000
/** Four ticks of 4 ms. */
const BURSTS_PER_S = 250 / 4
/** The largest packet that a guest with offloads is handed, and its header. */
const BURST_MIN = 66_000

/** Says how fast a card may be: as its vm says, and by the share of the host that the vm is where that says 0. */
export const bandwidthOf = (
  said: number | string,
  { vcpus, cpus, oversubscription, capacity }: Share,
): number | undefined => {
  const own = typeof said === 'number' ? said : (parseBandwidth(said) ?? 0)
  if (own > 0) return own >= BYTES_PER_S_MAX ? undefined : Math.max(own, BYTES_PER_S_MIN)
  const share = Math.ceil((vcpus / cpus) * oversubscription * capacity)
  return share >= Math.min(capacity, BYTES_PER_S_MAX) ? undefined : Math.max(share, BYTES_PER_S_MIN)
}

/** How much goes at once after a rest. */
export const burstOf = (bytesPerS: number): number => Math.max(BURST_MIN, Math.ceil(bytesPerS / BURSTS_PER_S))
