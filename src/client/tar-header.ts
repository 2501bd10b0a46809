/**
 * One header of a tar, as POSIX.1-2017 pax writes it: ustar, and a pax record in front where ustar has no room.
 *
 * Why not the writer of tar-stream, which reads our tars: it turns mode 0 into 0644 and ends time in 2038.
 */
export interface Header {
  readonly name: string
  readonly type: 'file' | 'link' | 'symlink' | 'character-device' | 'block-device' | 'directory' | 'fifo'
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size: number
  /** Seconds since 1970. */
  readonly mtime: number
  readonly linkname?: string
  readonly devmajor?: number
  readonly devminor?: number
  /** Extended attributes, which stand as `SCHILY.xattr.NAME` records (star(4)): their bytes as they are. A name holds no "=". */
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
  Buffer.from(header.linkname ?? '').copy(it, 157, 0, 100)
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

/** `LENGTH KEY=VALUE\n`, where the length counts itself. */
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

export const encodeHeader = (header: Header): Buffer => {
  const name = Buffer.from(header.name)
  const link = Buffer.from(header.linkname ?? '')
  const ascii = (text: Buffer) => text.every((byte) => byte < 128)
  const pax: Buffer[] = []
  const fit = (key: string, value: number, max: number): number => {
    if (value >= 0 && value <= max) return value
    pax.push(record(key, String(value)))
    return 0
  }
  if (name.length > 100 || !ascii(name)) pax.push(record('path', header.name))
  if (link.length > 100 || !ascii(link)) pax.push(record('linkpath', header.linkname ?? ''))
  const fitted = {
    ...header,
    uid: fit('uid', header.uid, MAX_7),
    gid: fit('gid', header.gid, MAX_7),
    size: fit('size', header.size, MAX_11),
    mtime: fit('mtime', header.mtime, MAX_11),
  }
  for (const { name: key, value } of header.xattrs ?? []) pax.push(record(Buffer.concat([XATTR, key]), value))
  const own = block(fitted, FLAG[header.type], name)
  if (pax.length === 0) return own
  const body = Buffer.concat(pax)
  return Buffer.concat([
    block({ name: '', mode: 0o644, uid: 0, gid: 0, size: body.length, mtime: 0 }, 'x', Buffer.from('PaxHeader')),
    body,
    Buffer.alloc(padding(body.length)),
    own,
  ])
}

export const TAR_END = Buffer.alloc(2 * BLOCK)
