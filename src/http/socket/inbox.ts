/** Memory that may wait for the guest before the client is held or refused. */
const QUEUE_MAX = 4_194_304
/** A held client goes on when no more than this waits. */
const QUEUE_LOW = 1_048_576
/** What a waiting message costs beside its bytes: a client of one-byte messages pays for what it makes us keep. */
const MESSAGE_COST = 512

/** Works on a client's messages one after the other, never two at once. */
export class Inbox {
  #tail: Promise<void> = Promise.resolve()
  #waiting = 0
  readonly #failed: () => void
  readonly #drained: () => void

  /** @param drained  is called when what waited has become little again */
  constructor(failed: () => void, drained: () => void = () => undefined) {
    this.#failed = failed
    this.#drained = drained
  }

  /** Tells whether a client is so far ahead that nothing more should come from it. */
  get full(): boolean {
    return this.#waiting > QUEUE_MAX
  }

  put(bytes: number, work: () => Promise<void>): void {
    const cost = bytes + MESSAGE_COST
    this.#waiting += cost
    this.#tail = this.#tail
      .then(work)
      .catch(() => {
        this.#failed()
      })
      .finally(() => {
        const before = this.#waiting
        this.#waiting -= cost
        if (before > QUEUE_LOW && this.#waiting <= QUEUE_LOW) this.#drained()
      })
  }
}
