/** A line narrower than this has no room for two columns. */
const WIDTH_MIN = 20

/** Finds where the second column of a line of help begins: after the first gap of two spaces. */
const columnOf = (line: string): number => /^(\s*\S+(?: \S+)*\s{2,})\S/.exec(line)?.[1]?.length ?? 0

/** Cuts a word that has no room, behind a `|`, `,` or `/` where it has one. */
const pieces = (word: string, room: number): string[] => {
  const parts: string[] = []
  let rest = word
  while (rest.length > room) {
    const head = rest.slice(0, room)
    const at = Math.max(head.lastIndexOf('|'), head.lastIndexOf(','), head.lastIndexOf('/')) + 1
    parts.push(rest.slice(0, at > 0 ? at : room))
    rest = rest.slice(at > 0 ? at : room)
  }
  return [...parts, rest]
}

const wrapLine = (line: string, width: number): string[] => {
  if (line.length <= width) return [line]
  const lead = line.length - line.trimStart().length
  const column = columnOf(line)
  const indent =
    column > 0 && column <= width - WIDTH_MIN ? column : Math.min(lead + (column > 0 ? 2 : 0), width - WIDTH_MIN)
  const head = column > 0 && column === indent ? line.slice(0, column) : ' '.repeat(lead)
  const words = line
    .slice(head.length)
    .split(/ +/)
    .filter((word) => word !== '')
    .flatMap((word) => pieces(word, width - Math.max(indent, head.length)))
  const lines: string[] = []
  let now = head
  let empty = true
  for (const word of words) {
    if (!empty && now.length + 1 + word.length > width) {
      lines.push(now)
      now = ' '.repeat(indent)
      empty = true
    }
    now += empty ? word : ` ${word}`
    empty = false
  }
  return [...lines, now]
}

/** Wraps each line of help that is wider than the terminal; what follows stands under its own column. */
export const wrap = (text: string, width: number | undefined): string =>
  width === undefined
    ? text
    : text
        .split('\n')
        .flatMap((line) => wrapLine(line, Math.max(WIDTH_MIN + 4, width)))
        .join('\n')
