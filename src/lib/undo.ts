type Back = (reason: unknown) => unknown

/**
 * A stack of what to take back when a sequence fails half way, newest first. `keep()` at the end of the sequence.
 *
 * An undo runs with no signal of the caller: a caller that went away is often the reason why we are here.
 * One that fails is reported and does not stop the others.
 */
export class Undo implements AsyncDisposable {
  #steps: { readonly name: string; readonly back: Back }[] = []
  readonly #failed: (step: string, error: unknown) => void

  constructor(failed: (step: string, error: unknown) => void) {
    this.#failed = failed
  }

  /** Remembers how a step is taken back; `back` is told why. */
  push(name: string, back: Back): void {
    this.#steps.push({ name, back })
  }

  /** Forgets every step: the sequence has succeeded. */
  keep(): void {
    this.#steps = []
  }

  /** Takes every step back, for this reason. */
  async run(reason?: unknown): Promise<void> {
    for (const step of this.#steps.reverse()) {
      try {
        await step.back(reason)
      } catch (error) {
        this.#failed(step.name, error)
      }
    }
    this.#steps = []
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.run()
  }
}

/** Who hears of what cannot be undone, and what the sequence throws. */
export interface Undoing {
  /** Hears of a step that could not be taken back. */
  readonly failed: (step: string, error: unknown) => void
  /** Says what the sequence throws, and its steps are told, for an error in it. Absent: the error itself. */
  readonly reasonOf?: (error: unknown) => unknown
}

/** Runs a sequence whose steps say how they are taken back: where it throws, all of them are, newest first. */
export const undoing = async <T>({ failed, reasonOf }: Undoing, sequence: (undo: Undo) => Promise<T>): Promise<T> => {
  const undo = new Undo(failed)
  try {
    return await sequence(undo)
  } catch (error) {
    const reason = reasonOf ? reasonOf(error) : error
    await undo.run(reason)
    throw reason
  }
}
