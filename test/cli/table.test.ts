import { describe, expect, test } from 'bun:test'
import { plain } from '../../src/lib/plain.ts'
import { cut, renderFields, renderTable, sayAgo, wantsColour, type Table } from '../../src/cli/table.ts'
import { sayMode } from '../../src/cli/commands/vm/file-table.ts'

const table: Table = {
  columns: [
    { title: 'NAME' },
    { title: 'IMAGE', cut: true },
    { title: 'CPUS', right: true },
    { title: 'STATE', paint: (cell) => (cell === 'running' ? 'green' : undefined) },
  ],
  rows: [
    ['a', 'alpine', '1', 'running'],
    ['long-name', 'registry.example/some/very/long/image:tag', '16', 'stopped'],
  ],
}

describe('a table', () => {
  test('lines up, without spaces at the end', () => {
    expect(renderTable(table, { width: undefined, colour: false })).toBe(
      [
        'NAME        IMAGE                                       CPUS   STATE',
        'a           alpine                                         1   running',
        'long-name   registry.example/some/very/long/image:tag     16   stopped',
        '',
      ].join('\n'),
    )
  })

  test('fits a terminal by cutting what may be cut', () => {
    const lines = renderTable(table, { width: 50, colour: false }).trimEnd().split('\n')

    expect(Math.max(...lines.map((line) => Bun.stringWidth(line)))).toBe(50)
    expect(lines[2]).toBe('long-name   registry.example/som…     16   stopped')
  })

  test('never cuts a column away in a terminal that is far too narrow', () => {
    expect(renderTable(table, { width: 10, colour: false })).toContain('registr…')
  })

  test('has colours that take no room', () => {
    const coloured = renderTable(table, { width: undefined, colour: true })

    expect(coloured).toContain('\x1b[32mrunning\x1b[0m')
    expect(Bun.stripANSI(coloured)).toBe(renderTable(table, { width: undefined, colour: false }))
  })

  test('shows what a guest says without obeying it', () => {
    const evil = renderTable(
      { columns: [{ title: 'NAME' }], rows: [['a\x1b[2J\nb\x9b31m\ttab\x00']] },
      { width: undefined, colour: false },
    )

    expect(evil).toBe('NAME\na\\x1b[2J⏎b\\x9b31m tab\\x00\n')
  })

  test('measures wide letters as the terminal does', () => {
    expect(cut('日本語テキスト', 7)).toBe('日本語…')
    expect(
      renderTable(
        {
          columns: [{ title: 'A' }, { title: 'B' }],
          rows: [
            ['日本', 'x'],
            ['abcd', 'y'],
          ],
        },
        { width: undefined, colour: false },
      ),
    ).toBe('A      B\n日本   x\nabcd   y\n')
  })
})

test('fields line up', () => {
  expect(
    renderFields(
      [
        ['Name', 'a'],
        ['Longer name', 'b\x1b'],
      ],
      { width: undefined, colour: false },
    ),
  ).toBe('Name:        a\nLonger name: b\\x1b\n')
})

test.each([
  [{}, true, true],
  [{}, false, false],
  [{ NO_COLOR: '1' }, true, false],
  [{ NO_COLOR: '' }, true, true],
  [{ TERM: 'dumb' }, true, false],
  [{ FORCE_COLOR: '1' }, false, true],
  [{ FORCE_COLOR: '0' }, true, false],
  [{ NO_COLOR: '1', FORCE_COLOR: '1' }, true, false],
] as const)('%o on a terminal (%p): colours are %p', (env, terminal, colour) => {
  expect(wantsColour(env, terminal)).toBe(colour)
})

test('times are said as people say them', () => {
  const now = Date.parse('2026-01-02T00:00:00Z')
  expect(
    [
      '2026-01-02T00:00:00Z',
      '2026-01-01T23:59:30Z',
      '2026-01-01T23:59:00Z',
      '2026-01-01T22:00:00Z',
      '2025-12-30T00:00:00Z',
      '2026-01-03T00:00:00Z',
    ].map((at) => sayAgo(at, now)),
  ).toEqual(['now', '30 seconds ago', '1 minute ago', '2 hours ago', '3 days ago', 'now'])
})

test('modes are written as ls writes them', () => {
  const stat = {
    exists: true,
    is_dir: false,
    is_file: true,
    is_symlink: false,
    link_target: null,
    size: 0,
    uid: 0,
    gid: 0,
    mtime_ms: 0,
  }
  expect([0o644, 0o4755, 0o2640, 0o1777].map((mode) => sayMode({ ...stat, mode }))).toEqual([
    '-rw-r--r--',
    '-rwsr-xr-x',
    '-rw-r-S---',
    '-rwxrwxrwt',
  ])
  expect(sayMode({ ...stat, is_dir: true, is_file: false, mode: 0o755 })).toBe('drwxr-xr-x')
})

test('a line stays a line', () => {
  expect(plain('a\r\nb')).toBe('a\\x0d⏎b')
})
