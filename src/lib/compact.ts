/** Time between two looks at what this process has done. */
const EVERY_MS = 10_000
/** A process that spends less of one processor than this is quiet. */
const QUIET_SHARE = 0.01

/**
 * Gives memory back once a busy daemon has become quiet: a start or a hundred requests leave garbage that no later request is there to
 * collect, a third of an idle daemon. A collection stops the event loop for some milliseconds, which is why it waits for that moment.
 */
export const compactWhenQuiet = (everyMs = EVERY_MS, collect: () => void = () => Bun.gc(true)): { stop(): void } => {
  let before = process.cpuUsage()
  let due = true
  const timer = setInterval(() => {
    const { user, system } = process.cpuUsage(before)
    before = process.cpuUsage()
    const quiet = user + system < everyMs * 1000 * QUIET_SHARE
    if (quiet && due) collect()
    due = !quiet
  }, everyMs)
  timer.unref()
  return {
    stop: () => {
      clearInterval(timer)
    },
  }
}
