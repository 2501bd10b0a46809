/** How much somebody may do: `perSecond` in the long run, `burst` at once. */
export interface Rate {
  readonly perSecond: number
  readonly burst: number
}

/**
 * A token bucket: it fills by `perSecond` up to `burst`, and `take` empties it. Amounts are in any unit that the caller
 * keeps to.
 */
export class Allowance {
  readonly #rate: Rate
  readonly #now: () => number
  #left: number
  #at: number

  /** `now` tells the time in milliseconds and never goes back. */
  constructor(rate: Rate, now: () => number = () => performance.now()) {
    this.#rate = rate
    this.#now = now
    this.#left = rate.burst
    this.#at = now()
  }

  /** Takes `amount` and says true, or takes nothing and says false where less is left. */
  take(amount = 1): boolean {
    this.#fill()
    if (this.#left < amount) return false
    this.#left -= amount
    return true
  }

  /**
   * Takes `amount` in any case, and gives the milliseconds until what is owed has been filled up again: 0 where nothing
   * is.
   */
  reserve(amount: number): number {
    this.#fill()
    this.#left -= amount
    return this.#left >= 0 ? 0 : (-this.#left / this.#rate.perSecond) * 1000
  }

  #fill(): void {
    const now = this.#now()
    this.#left = Math.min(this.#rate.burst, this.#left + ((now - this.#at) / 1000) * this.#rate.perSecond)
    this.#at = now
  }
}
