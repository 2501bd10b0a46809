/**
 * One queue a key: work of one key runs one after the other, work of two keys side by side.
 *
 * INVARIANTS
 * - Work of a key starts only when the earlier work of that key has settled, in the order of the calls.
 * - Work that rejects does not stop the queue; its caller alone sees the rejection.
 * - Never call `run` for a key from inside work of the same key and await it: that waits for itself.
 * - A key without work takes no memory.
 */
export class Serial {
  readonly #tails = new Map<string, Promise<unknown>>()

  run<T>(key: string, work: () => Promise<T>): Promise<T> {
    const before = this.#tails.get(key) ?? Promise.resolve()
    const result = before.then(work, work)
    const tail = result
      .then(
        () => undefined,
        () => undefined,
      )
      .then(() => {
        if (this.#tails.get(key) === tail) this.#tails.delete(key)
      })
    this.#tails.set(key, tail)
    return result
  }

  /** Resolves when all work that is queued now has settled. */
  async idle(): Promise<void> {
    await Promise.all(this.#tails.values())
  }

  get busy(): number {
    return this.#tails.size
  }
}
