import { readFileSync } from 'node:fs'
import { isBytes, osText } from '../lib/os-text.ts'
import { usageInvalid } from './flags.ts'

/** What Bun puts in the place of bytes that are no UTF-8. */
const REPLACED = '\ufffd'

/**
 * Reads the words of this command line as the kernel has them: Bun has read them as UTF-8 already, and does not say
 * where they are none.
 */
export const ownWords = (argv: readonly string[]): readonly string[] => {
  if (!argv.some((word) => word.includes(REPLACED))) return argv
  const words = splitWords(readFileSync('/proc/self/cmdline'))
  return words.length < argv.length ? argv : words.slice(words.length - argv.length)
}

/** Splits what stands in /proc/PID/cmdline: each word ends with a NUL (proc(5)). */
export const splitWords = (cmdline: Uint8Array): string[] => {
  const words: string[] = []
  for (let at = 0; at < cmdline.length; ) {
    const end = cmdline.indexOf(0, at)
    const to = end === -1 ? cmdline.length : end
    words.push(osText(cmdline.subarray(at, to)))
    at = to + 1
  }
  return words
}

/**
 * Refuses words that are no text: a path of a request, a name or a flag is told in UTF-8, and would arrive as another
 * one.
 *
 * @param ours  the words that are not of the command that runs in a guest, which takes any bytes
 */
export const checkWords = (ours: readonly string[]): void => {
  const odd = ours.find(isBytes)
  if (odd === undefined) return
  throw usageInvalid({
    reason: `Cannot use "${odd.toWellFormed()}": it is not UTF-8`,
    hint: 'Name the folder that it is in: names in a folder may be any bytes',
  })
}
