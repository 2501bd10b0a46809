import type { Machine } from '../hypervisor/driver.ts'

/** How long a conversation is waited for at most, however well its guest answers others, ms. */
const LONGEST_MS = 120_000

/** The moment at which the agent of a machine last answered anybody, in milliseconds of `performance.now`. */
const answered = new WeakMap<Machine, number>()

/**
 * Begins a conversation with the agent of `machine`, which may take `ms` to answer. Many that begin at once wait for
 * each other in the guest, so the time counts from the last answer that the guest gave to anybody: whoever is behind
 * others waits for their turn, and a guest that stands still is told after `ms` all the same. `begin` gets the signal
 * that ends the wait; `client` ends it at once.
 */
export const patiently = async <T>(
  machine: Machine,
  ms: number,
  client: AbortSignal | undefined,
  begin: (signal: AbortSignal) => Promise<T>,
  longestMs = LONGEST_MS,
): Promise<T> => {
  const over = new AbortController()
  const began = performance.now()
  let timer: ReturnType<typeof setTimeout> | undefined
  const look = () => {
    const heard = Math.max(began, answered.get(machine) ?? 0)
    const left = Math.min(heard + ms, began + Math.max(ms, longestMs)) - performance.now()
    if (left <= 0) over.abort(new DOMException('The agent does not answer', 'TimeoutError'))
    else timer = setTimeout(look, Math.ceil(left))
  }
  look()
  try {
    const answer = await begin(client ? AbortSignal.any([client, over.signal]) : over.signal)
    answered.set(machine, performance.now())
    return answer
  } finally {
    clearTimeout(timer)
  }
}
