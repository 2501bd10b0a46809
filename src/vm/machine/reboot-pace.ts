import type { Store } from '../../store/store.ts'
import { byUid } from '../row/lookup.ts'
import { change } from '../row/moves.ts'

/*
 * A guest reboots as often as it likes, and each time costs the host a VMM, synced writes and events. One that does so
 * again and again has to wait longer each time, and in the end is taken for what it is: a crash loop.
 */

/** A boot that lasted so long is none of a loop. */
export const STEADY_MS = 60_000
/**
 * How long the second reboot of a loop waits; each one after it twice as long, up to a minute. The first waits for
 * nothing.
 */
const PAUSE_MS = 1000
const PAUSE_MS_MAX = 60_000
/** Reboots of a loop, after which its vm is taken for crashed. */
export const REBOOTS_MAX = 10

/** Tells how long the boot waits that follows so many quick reboots in a row. */
export const pauseOf = (count: number): number => (count <= 1 ? 0 : Math.min(PAUSE_MS * 2 ** (count - 2), PAUSE_MS_MAX))

/**
 * Counts a reboot after a boot of so many ms; gives how long the next boot waits, undefined where there is none any
 * more. The count stands in the row, so that a daemon which starts anew goes on from it.
 */
export const pauseBefore = (store: Store, uid: string, ranMs: number): number | undefined => {
  const before = byUid(store, uid)?.quickReboots ?? 0
  const count = ranMs >= STEADY_MS ? 0 : before + 1
  const isLoop = count > REBOOTS_MAX
  const kept = isLoop ? 0 : count
  if (kept !== before) change(store, uid, { quickReboots: kept })
  return isLoop ? undefined : pauseOf(count)
}
