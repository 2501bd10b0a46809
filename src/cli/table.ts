import { plain } from '../lib/plain.ts'

/** One column of a table. */
export interface Column {
  readonly title: string
  readonly right?: boolean
  /** May be cut where the terminal is too narrow; the widest of these is cut first. */
  readonly cut?: boolean
  readonly paint?: (cell: string) => Paint | undefined
}
export type Paint = 'bold' | 'dim' | 'red' | 'green' | 'yellow'

/** A table for a person: its columns, and rows with a text for each of them. */
export interface Table {
  readonly columns: readonly Column[]
  readonly rows: readonly (readonly string[])[]
}

/** What the output of a table can show: its width in columns (undefined: no bound), and colours. */
export interface Look {
  readonly width: number | undefined
  readonly colour: boolean
}

const CODES: Readonly<Record<Paint, number>> = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33 }

/** Wraps a text in the colour codes of a terminal (ECMA-48, SGR), where colours are wanted. */
export const paint = (text: string, how: Paint | undefined, colour: boolean): string =>
  how === undefined || !colour || text === '' ? text : `\x1b[${CODES[how]}m${text}\x1b[0m`

/** Colours where a person looks at it: NO_COLOR (no-color.org) and TERM=dumb say no, FORCE_COLOR says yes. */
export const wantsColour = (env: Readonly<Record<string, string | undefined>>, terminal: boolean): boolean =>
  env['NO_COLOR'] ? false : env['FORCE_COLOR'] ? env['FORCE_COLOR'] !== '0' : terminal && env['TERM'] !== 'dumb'

const GAP = 3
const CUT_MIN = 8

/** Cuts a text to at most `width` columns of the terminal; an ellipsis stands for what is missing. */
export const cut = (text: string, width: number): string => {
  if (Bun.stringWidth(text) <= width) return text
  let kept = ''
  let used = 1
  for (const char of text) {
    used += Bun.stringWidth(char)
    if (used > width) break
    kept += char
  }
  return `${kept}…`
}

/** Writes a table as text, cut to the width of the terminal; no cell can steer the terminal. */
export const renderTable = (table: Table, look: Look): string => {
  const rows = table.rows.map((row) => row.map(plain))
  const widths = table.columns.map((column, at) =>
    Math.max(Bun.stringWidth(column.title), ...rows.map((row) => Bun.stringWidth(row[at] ?? ''))),
  )
  if (look.width !== undefined) {
    let over = widths.reduce((sum, width) => sum + width + GAP, -GAP) - look.width
    while (over > 0) {
      const widest = widths
        .map((width, at) => ({ width, at }))
        .filter(({ width, at }) => table.columns[at]?.cut === true && width > CUT_MIN)
        .sort((a, b) => b.width - a.width)[0]
      if (!widest) break
      widths[widest.at] = widest.width - 1
      over--
    }
  }
  const line = (cells: readonly string[], how: (at: number, cell: string) => Paint | undefined): string =>
    table.columns
      .map((column, at) => {
        const cell = cut(cells[at] ?? '', widths[at] ?? 0)
        const space = ' '.repeat(Math.max(0, (widths[at] ?? 0) - Bun.stringWidth(cell)))
        const painted = paint(cell, how(at, cell), look.colour)
        const last = at === table.columns.length - 1
        return column.right ? space + painted : last ? painted : painted + space
      })
      .join(' '.repeat(GAP))
      .trimEnd()
  return `${[
    line(
      table.columns.map((column) => column.title),
      () => 'bold',
    ),
    ...rows.map((row) => line(row, (at, cell) => table.columns[at]?.paint?.(cell))),
  ].join('\n')}\n`
}

/** Writes one thing as lines of `name: value`. */
export const renderFields = (fields: readonly (readonly [string, string])[], look: Look): string => {
  const width = Math.max(0, ...fields.map(([name]) => name.length)) + 2
  return `${fields.map(([name, value]) => paint(`${name}:`.padEnd(width), 'bold', look.colour) + plain(value)).join('\n')}\n`
}

/** Writes how long ago a time is, for people: the largest unit. */
export const sayAgo = (timestamp: string, nowMs = Date.now()): string => {
  const seconds = Math.max(0, Math.round((nowMs - Date.parse(timestamp)) / 1000))
  for (const [name, size] of [
    ['day', 86_400],
    ['hour', 3600],
    ['minute', 60],
  ] as const) {
    const count = Math.floor(seconds / size)
    if (count >= 1) return `${count} ${name}${count === 1 ? '' : 's'} ago`
  }
  return seconds < 2 ? 'now' : `${seconds} seconds ago`
}
