/**
 * One header of a tar, as POSIX.1-2017 pax writes it: ustar, and a pax record in front where ustar has no room.
 *
 * Why our own writer: names are bytes, holes stay holes, mode 0 stays mode 0 and time goes on after 2038.
 */
import { bytesOfName } from './tar-name.ts'

export type EntryType = 'file' | 'link' | 'symlink' | 'character-device' | 'block-device' | 'directory' | 'fifo'

/**
 * The parts of a sparse file that hold data; what lies between, before and behind is zeros that no disk block holds.
 */
export interface Sparse {
  /** The file's length with its holes. */
  readonly size: number
  /** Offset and length of each piece of data, in order and apart. */
  readonly pieces: readonly (readonly [offset: number, length: number])[]
}

/** What a tar archive says of one entry (POSIX pax). */
export interface Header {
  /** A byte string (tar-name.ts), as is `linkname`. */
  readonly name: string
  readonly type: EntryType
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Bytes of data that follow; of a sparse file those of its pieces. */
  readonly size: number
  /** Seconds since 1970, perhaps with a fraction. */
  readonly mtime: number
  readonly linkname?: string
  readonly devmajor?: number
  readonly devminor?: number
  readonly sparse?: Sparse
  /**
   * Extended attributes, which stand as `SCHILY.xattr.NAME` records (star(4)): their bytes as they are. A name holds no
   * "=".
   */
  readonly xattrs?: readonly { readonly name: Uint8Array; readonly value: Uint8Array }[]
}

const FLAG = {
  file: '0',
  link: '1',
  symlink: '2',
  'character-device': '3',
  'block-device': '4',
  directory: '5',
  fifo: '6',
} as const
export const BLOCK = 512

/** Counts the zero bytes that follow `size` bytes of data up to the next block. */
export const padding = (size: number): number => (BLOCK - (size % BLOCK)) % BLOCK

const octal = (block: Buffer, value: number, at: number, digits: number): void => {
  block.write(value.toString(8).padStart(digits, '0').slice(-digits), at, 'latin1')
}

const block = (header: Omit<Header, 'type'>, flag: string, name: Buffer): Buffer => {
  const it = Buffer.alloc(BLOCK)
  name.copy(it, 0, 0, 100)
  octal(it, header.mode & 0o7777, 100, 7)
  octal(it, header.uid, 108, 7)
  octal(it, header.gid, 116, 7)
  octal(it, header.size, 124, 11)
  octal(it, header.mtime, 136, 11)
  it.write(flag, 156, 'latin1')
  bytesOfName(header.linkname ?? '').copy(it, 157, 0, 100)
  it.write('ustar\u000000', 257, 'latin1')
  octal(it, header.devmajor ?? 0, 329, 7)
  octal(it, header.devminor ?? 0, 337, 7)
  it.fill(' ', 148, 156)
  octal(
    it,
    it.reduce((sum, byte) => sum + byte, 0),
    148,
    6,
  )
  it[154] = 0
  return it
}

/** Writes a pax record, `LENGTH KEY=VALUE\n`, where the length counts itself. */
const record = (key: string | Uint8Array, value: string | Uint8Array): Buffer => {
  const rest = Buffer.concat([
    Buffer.from(' '),
    Buffer.from(key),
    Buffer.from('='),
    Buffer.from(value),
    Buffer.from('\n'),
  ])
  const bytes = rest.length
  let length = bytes + String(bytes).length
  if (bytes + String(length).length > length) length = bytes + String(length).length
  return Buffer.concat([Buffer.from(String(length)), rest])
}

const XATTR = Buffer.from('SCHILY.xattr.')
const MAX_7 = 0o7777777
const MAX_11 = 0o77777777777

/**
 * Writes the map of a sparse file, in front of its data: decimal numbers, each on a line (GNU tar, "Storing Sparse
 * Files", PAX 1.0).
 */
const mapOf = ({ size, pieces }: Sparse): Buffer => {
  const last = pieces.at(-1)
  // A piece of no bytes at the end says how long the file is to readers that look at the map alone.
  const listed = last === undefined || last[0] + last[1] < size ? [...pieces, [size, 0] as const] : pieces
  const text = Buffer.from(`${listed.length}\n${listed.map(([offset, length]) => `${offset}\n${length}\n`).join('')}`)
  return Buffer.concat([text, Buffer.alloc(padding(text.length))])
}

/** Makes the name that GNU tar gives a sparse file for readers that know nothing of holes. */
const plainName = (name: Buffer): Buffer => {
  const slash = name.lastIndexOf('/') + 1
  return Buffer.concat([name.subarray(0, slash), Buffer.from('GNUSparseFile.0/'), name.subarray(slash)])
}

/** Writes a header as it stands in the archive; of a sparse file its map follows. */
export const encodeHeader = (header: Header): Buffer => {
  const real = bytesOfName(header.name)
  const name = header.sparse ? plainName(real) : real
  const link = bytesOfName(header.linkname ?? '')
  const map = header.sparse ? mapOf(header.sparse) : undefined
  const ascii = (text: Buffer) => text.every((byte) => byte < 128)
  const pax: Buffer[] = []
  const fit = (key: string, value: number, max: number): number => {
    if (value >= 0 && value <= max) return value
    pax.push(record(key, String(value)))
    return 0
  }
  const fraction = (seconds: number): number => {
    pax.push(record('mtime', String(seconds)))
    return Math.min(Math.max(Math.floor(seconds), 0), MAX_11)
  }
  if (header.sparse) {
    pax.push(record('GNU.sparse.major', '1'), record('GNU.sparse.minor', '0'))
    pax.push(record('GNU.sparse.name', real), record('GNU.sparse.realsize', String(header.sparse.size)))
  }
  if (name.length > 100 || !ascii(name)) pax.push(record('path', name))
  if (link.length > 100 || !ascii(link)) pax.push(record('linkpath', link))
  const fitted = {
    ...header,
    uid: fit('uid', header.uid, MAX_7),
    gid: fit('gid', header.gid, MAX_7),
    size: fit('size', header.size + (map?.length ?? 0), MAX_11),
    mtime: Number.isInteger(header.mtime) ? fit('mtime', header.mtime, MAX_11) : fraction(header.mtime),
  }
  for (const { name: key, value } of header.xattrs ?? []) pax.push(record(Buffer.concat([XATTR, key]), value))
  const own = block(fitted, FLAG[header.type], name)
  const after = map ? [own, map] : [own]
  if (pax.length === 0) return after.length === 1 ? own : Buffer.concat(after)
  const body = Buffer.concat(pax)
  return Buffer.concat([
    block({ name: '', mode: 0o644, uid: 0, gid: 0, size: body.length, mtime: 0 }, 'x', Buffer.from('PaxHeader')),
    body,
    Buffer.alloc(padding(body.length)),
    ...after,
  ])
}

export const TAR_END = Buffer.alloc(2 * BLOCK)
