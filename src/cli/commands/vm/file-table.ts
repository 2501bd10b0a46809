import type { FileStat } from '../../../contract/files.ts'
import { sayBytes } from '../../../lib/bytes.ts'
import type { Table } from '../../table.ts'

const kindOf = (stat: FileStat): string => (stat.is_dir ? 'd' : stat.is_symlink ? 'l' : stat.is_file ? '-' : '?')

/** Writes the mode as ls(1) does, `-rwxr-xr-x`, with set-id and sticky bits. */
export const sayMode = (stat: FileStat): string => {
  const bits = Array.from({ length: 9 }, (_, at) => ((stat.mode >> (8 - at)) & 1 ? ('rwx'[at % 3] ?? '-') : '-'))
  for (const [bit, at, letter] of [
    [0o4000, 2, 's'],
    [0o2000, 5, 's'],
    [0o1000, 8, 't'],
  ] as const) {
    if (stat.mode & bit) bits[at] = bits[at] === 'x' ? letter : letter.toUpperCase()
  }
  return kindOf(stat) + bits.join('')
}

const sayTime = (ms: number): string => new Date(ms).toISOString().replace(/\.\d+Z$/, 'Z')

/** Makes the table of a folder's entries, as `ls -l` shows them. */
export const fileTable = (entries: readonly (FileStat & { readonly name: string })[]): Table => ({
  columns: [
    { title: 'MODE' },
    { title: 'OWNER', right: true },
    { title: 'SIZE', right: true },
    { title: 'MODIFIED' },
    { title: 'NAME' },
  ],
  rows: entries.map((one) => [
    sayMode(one),
    `${one.uid}:${one.gid}`,
    one.is_dir ? '-' : sayBytes(one.size),
    sayTime(one.mtime_ms),
    one.link_target === null ? one.name : `${one.name} -> ${one.link_target}`,
  ]),
})

/** Makes the fields of one file, for a page of names and values. */
export const fileFields = (path: string, stat: FileStat): readonly (readonly [string, string])[] => [
  ['Path', stat.link_target === null ? path : `${path} -> ${stat.link_target}`],
  ['Kind', stat.is_dir ? 'folder' : stat.is_symlink ? 'symbolic link' : stat.is_file ? 'file' : 'other'],
  ['Mode', `${sayMode(stat)} (${(stat.mode & 0o7777).toString(8).padStart(4, '0')})`],
  ['Owner', `${stat.uid}:${stat.gid}`],
  ['Size', `${stat.size} (${sayBytes(stat.size)})`],
  ['Modified', sayTime(stat.mtime_ms)],
]
