import type { Fault } from './fault.ts'

/**
 * How one thing is found by what a person wrote; the same for every noun.
 *
 * What is exact wins, in the order of `exact`. After that only the beginning of an id counts, by its letters as they
 * are, never the beginning of a name; and where the thing is to end, to go or to be written over, nothing but what is
 * exact: a second `rm web` must not take `web-prod`.
 */
export interface Lookup<T> {
  /** What is called exactly so, the strongest first; two of one kind are ambiguous. */
  readonly exact: readonly ((ref: string) => readonly T[])[]
  /** What has an id that begins so, at most a few. Absent where a noun has no ids. */
  readonly beginning?: (ref: string) => readonly T[]
  /** Names that begin so, at most a few: what may have been meant. */
  readonly like: (ref: string) => readonly string[]
  readonly nameOf: (thing: T) => string
  readonly notFound: (ref: string, meant: readonly string[]) => Fault
  readonly ambiguous: (ref: string, matches: readonly string[]) => Fault
}

/** What is done with the thing: `change` ends it, deletes it, moves it or writes over it. */
export type Use = 'read' | 'change'

/** How much of an id has to be written, after what all ids of a kind begin with. */
export const ID_BEGINNING_MIN = 4
/** How many matches are asked for and named. */
export const MATCHES_MAX = 5

/** Finds the one thing that `ref` names. @throws the `notFound` and `ambiguous` of the noun */
export const lookUp = <T>(ref: string, how: Lookup<T>, use: Use): T => {
  const one = (found: readonly T[]): T | undefined => {
    if (found.length > 1) throw how.ambiguous(ref, found.slice(0, MATCHES_MAX).map(how.nameOf))
    return found[0]
  }
  for (const exactly of how.exact) {
    const found = one(exactly(ref))
    if (found !== undefined) return found
  }
  const begun = how.beginning?.(ref) ?? []
  if (use === 'read') {
    const found = one(begun)
    if (found !== undefined) return found
  }
  const meant = new Set([...begun.map(how.nameOf), ...(ref === '' ? [] : how.like(ref))])
  throw how.notFound(ref, [...meant].slice(0, MATCHES_MAX))
}

/** Writes the hint for a thing that was not found: what may have been meant, else what `otherwise` says. */
export const didYouMean = (meant: readonly string[], otherwise: string): string =>
  meant.length === 0 ? otherwise : `Did you mean ${meant.map((name) => `"${name}"`).join(' or ')}?`
