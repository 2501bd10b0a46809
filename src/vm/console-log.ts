import { readBackwards } from './line-file.ts'

/** The last lines of a console's log, oldest first, without the control characters that a terminal would act on. */
export const lastLines = (path: string, count: number): string[] => {
  const lines: string[] = []
  if (count === 0) return lines
  readBackwards(path, (line) => {
    lines.unshift(plain(line))
    return lines.length < count
  })
  return lines
}

/** Without escape sequences and control characters: a guest writes its console, and a person's terminal shows it. */
export const plain = (line: string): string =>
  line.replaceAll(/\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00-\x08\x0b-\x1f\x7f]/g, '')
