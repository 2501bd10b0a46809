/**
 * A stack of what to take back when a sequence fails half way, newest first. `keep()` at the end of the sequence.
 *
 * An undo runs with no signal of the caller: a caller that went away is often the reason why we are here.
 * One that fails is reported and does not stop the others.
 */
export class Undo implements AsyncDisposable {
  #steps: { readonly name: string; readonly back: () => unknown }[] = []
  readonly #failed: (step: string, error: unknown) => void

  constructor(failed: (step: string, error: unknown) => void) {
    this.#failed = failed
  }

  push(name: string, back: () => unknown): void {
    this.#steps.push({ name, back })
  }

  keep(): void {
    this.#steps = []
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const step of this.#steps.reverse()) {
      try {
        await step.back()
      } catch (error) {
        this.#failed(step.name, error)
      }
    }
    this.#steps = []
  }
}
