import { withoutControls } from '../../lib/plain.ts'
import { readBackwards } from './line-file.ts'

/**
 * Reads the last lines of a console's log, oldest first, without the control characters that a terminal would act on.
 */
export const lastLines = (path: string, count: number): string[] => {
  const lines: string[] = []
  if (count === 0) return lines
  readBackwards(path, (line) => {
    lines.unshift(withoutControls(line))
    return lines.length < count
  })
  return lines
}
