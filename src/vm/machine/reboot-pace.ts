import type { Vms } from '../../host.ts'

/*
 * A guest reboots as often as it likes, and each time costs the host a VMM, synced writes and events. One that does so again and again has
 * to wait longer each time, and in the end is taken for what it is: a crash loop.
 */

/** A boot that lasted so long is none of a loop. */
export const STEADY_MS = 60_000
/** How long the second reboot of a loop waits; each one after it twice as long, up to a minute. The first waits for nothing. */
const PAUSE_MS = 1000
const PAUSE_MS_MAX = 60_000
/** Reboots of a loop, after which its vm is taken for crashed. */
export const REBOOTS_MAX = 10

/** Quick reboots in a row, by uid. */
const counts = new WeakMap<Vms, Map<string, number>>()

const countsOf = (vms: Vms): Map<string, number> => {
  const found = counts.get(vms) ?? new Map<string, number>()
  counts.set(vms, found)
  return found
}

/** Counts a reboot after a boot of so many ms; gives how long the next boot waits, undefined where there is none any more. */
export const pauseBefore = (vms: Vms, uid: string, ranMs: number): number | undefined => {
  const count = ranMs >= STEADY_MS ? 0 : (countsOf(vms).get(uid) ?? 0) + 1
  if (count === 0 || count > REBOOTS_MAX) countsOf(vms).delete(uid)
  else countsOf(vms).set(uid, count)
  if (count > REBOOTS_MAX) return undefined
  return count <= 1 ? 0 : Math.min(PAUSE_MS * 2 ** (count - 2), PAUSE_MS_MAX)
}

/** Forgets how often a guest rebooted: somebody starts it anew, or it is gone. */
export const forgetReboots = (vms: Vms, uid: string): void => {
  countsOf(vms).delete(uid)
}
