/**
 * Writes what was tried and why it failed as one sentence. A reason that is a whole sentence by itself, as those of
 * `wing`, says both.
 */
export const sentenceOf = (tried: string, reason: string): string =>
  /^Cannot\b/.test(reason) ? reason : `${tried}: ${reason}`
