/** Time between two looks at what this process has done. */
const EVERY_MS = 10_000
/** A process that spends less of one processor than this is quiet. */
const QUIET_SHARE = 0.01

/** Counts the processor time of this process so far, in milliseconds. */
const spentMs = (): number => {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

/**
 * Gives memory back once a busy daemon has become quiet: a start or a hundred requests leave garbage that no later
 * request is there to collect, a third of an idle daemon. A collection stops the event loop for some milliseconds,
 * which is why it waits for that moment. `spent` tells the processor time that was used, in milliseconds.
 */
export const compactWhenQuiet = (
  everyMs = EVERY_MS,
  collect: () => void = () => Bun.gc(true),
  spent: () => number = spentMs,
): { stop(): void } => {
  let before = spent()
  let due = true
  const timer = setInterval(() => {
    const quiet = spent() - before < everyMs * QUIET_SHARE
    if (quiet && due) collect()
    due = !quiet
    before = spent() // what the collection took is not work
  }, everyMs)
  timer.unref()
  return {
    stop: () => {
      clearInterval(timer)
    },
  }
}
