/**
 * Counts how deep arrays and objects are nested in JSON, by its bytes alone: parsers recurse, so this is asked before
 * one is.
 */
export const depthOf = (bytes: Uint8Array): number => {
  let depth = 0
  let deepest = 0
  let inString = false
  let escaped = false
  for (const byte of bytes) {
    if (escaped) escaped = false
    else if (byte === 0x5c && inString) escaped = true
    else if (byte === 0x22) inString = !inString
    else if (!inString && (byte === 0x5b || byte === 0x7b)) deepest = Math.max(deepest, ++depth)
    else if (!inString && (byte === 0x5d || byte === 0x7d)) depth--
  }
  return deepest
}
