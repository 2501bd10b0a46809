/** The first number behind stdin, stdout and stderr. */
const FIRST = 3

/**
 * Numbers descriptors that a process inherits by their place in a list, from 3 on. Where another process relies on a
 * number, add at the end.
 */
export const numbered = <Name extends string>(...names: readonly Name[]): Readonly<Record<Name, number>> =>
  Object.fromEntries(names.map((name, index) => [name, FIRST + index])) as Record<Name, number>

/**
 * The descriptors that a process inherits: those with a name first, then lists of any length, numbered in the order in
 * which they are given.
 */
export class Inherited<Name extends string> {
  readonly #numbers: Readonly<Record<Name, number>>
  readonly #fds: (readonly [number, number])[] = []
  #next: number

  constructor(numbers: Readonly<Record<Name, number>>) {
    this.#numbers = numbers
    this.#next = FIRST + Object.keys(numbers).length
  }

  /** Hands on the descriptor of a name. */
  name(name: Name, fd: number): void {
    this.#fds.push([fd, this.#numbers[name]])
  }

  /** Hands on a list of descriptors, and says the numbers that they have in the process. */
  list(fds: readonly number[]): number[] {
    return fds.map((fd) => {
      const number = this.#next++
      this.#fds.push([fd, number])
      return number
    })
  }

  /** Pairs of a descriptor of ours and its number in the process, as `launch` takes them. */
  get fds(): readonly (readonly [number, number])[] {
    return this.#fds
  }
}
