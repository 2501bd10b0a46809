/**
 * A share of the event loop for what guests send.
 *
 * Bytes that have arrived already are handled in microtasks, one after the other, and nothing else runs until they are
 * used up: one guest that never stops would hold every request of everybody. Whoever handles such bytes calls `share`
 * after each piece: it resolves at once while this turn of the loop has spent less than `TURN_MS` on guests, all of
 * them together, and else in the next turn.
 */
const TURN_MS = 2

/**
 * The moment at which this turn's first piece was handled, in milliseconds of `performance.now`; undefined before it.
 */
let began: number | undefined

/** Lets other work run where this turn of the event loop has lasted long; undefined where it may go on. */
export const share = (): Promise<void> | undefined => {
  const now = performance.now()
  if (began === undefined) {
    began = now
    setImmediate(() => {
      began = undefined
    })
    return undefined
  }
  return now - began < TURN_MS ? undefined : new Promise((resolve) => setImmediate(resolve))
}
