/**
 * Words of a command line as text. Linux takes bytes; a byte that is no UTF-8 where it stands is kept as the surrogate
 * U+DC00 + byte, alone, which no text holds: JSON carries it, and the agent in the guest turns it into that byte again
 * (PEP 383's surrogateescape).
 */

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

const decoded = (bytes: Uint8Array): string | undefined => {
  try {
    return decoder.decode(bytes)
  } catch {
    return undefined
  }
}

/** Reads bytes as text that can become the same bytes again. */
export const osText = (bytes: Uint8Array): string => {
  const whole = decoded(bytes)
  if (whole !== undefined) return whole
  let text = ''
  for (let at = 0; at < bytes.length; ) {
    // The shortest that decodes is one character.
    let length = 1
    while (length <= 4 && decoded(bytes.subarray(at, at + length)) === undefined) length++
    const letter = length > 4 ? undefined : decoded(bytes.subarray(at, at + length))
    text += letter ?? String.fromCharCode(0xdc00 + (bytes[at] ?? 0))
    at += letter === undefined ? 1 : length
  }
  return text
}

/** Tells whether a word is bytes that are no UTF-8. */
export const isBytes = (word: string): boolean => !word.isWellFormed()

/** Tells whether a word is text and bytes alone: a surrogate of another kind stands for nothing. */
export const isWord = (word: string): boolean =>
  word.isWellFormed() || word.replaceAll(/[\udc80-\udcff]/gu, '').isWellFormed()
