/**
 * Reads a tar stream: ustar, pax, and what GNU tar writes (long names, sparse files of every dialect). The stream may
 * be hostile: every number is checked, and a header costs a bounded piece of memory.
 *
 * Why not a package: the one that this replaced decodes pax names as UTF-8, which makes two names of one, gives a body
 * to entries that have none, and refuses sparse files.
 */
import { Fault } from '../lib/fault.ts'
import { BLOCK, padding, type EntryType, type Sparse } from './tar-header.ts'
import { archiveInvalid, nameOfBytes } from './tar-name.ts'
import { messageOf } from '../lib/thrown.ts'

/** One entry without its data. Names are byte strings. */
export interface Entry {
  readonly name: string
  readonly type: EntryType | 'unknown'
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Bytes of data that follow; of a sparse file those of its pieces. */
  readonly size: number
  /** Seconds since 1970, perhaps with a fraction. */
  readonly mtime: number
  readonly linkname: string
  readonly devmajor: number
  readonly devminor: number
  readonly sparse: Sparse | undefined
}

/** A pax header or a GNU long name. */
const EXTENSION_BYTES_MAX = 4 * 1024 * 1024
const PIECES_MAX = 1_000_000
/** Seconds that a Date can be made of. */
const TIME_MAX = 8.64e12

const invalid = (reason: string) => archiveInvalid({ reason })

const TYPES: Readonly<Record<string, EntryType>> = {
  '0': 'file',
  '\0': 'file',
  '7': 'file',
  S: 'file',
  '1': 'link',
  '2': 'symlink',
  '3': 'character-device',
  '4': 'block-device',
  '5': 'directory',
  '6': 'fifo',
}

const untilNul = (field: Buffer): Buffer => {
  const nul = field.indexOf(0)
  return nul < 0 ? field : field.subarray(0, nul)
}

/** Reads a number: octal digits, or binary where the first bit is set (GNU). */
const number = (field: Buffer): number => {
  const first = field[0] ?? 0
  if ((first & 0x80) !== 0) {
    // Two's complement with the marker as a further sign bit.
    let value = (first & 0x40) === 0 ? BigInt(first & 0x3f) : BigInt(first) - 256n
    for (const byte of field.subarray(1)) value = value * 256n + BigInt(byte)
    const it = Number(value)
    if (!Number.isSafeInteger(it)) throw invalid('a number is too large')
    return it
  }
  const text = untilNul(field).toString('latin1').trim()
  if (text === '') return 0
  if (!/^[0-7]+$/.test(text)) throw invalid('a header holds a number that is none')
  return Number.parseInt(text, 8)
}

const natural = (field: Buffer): number => {
  const it = number(field)
  if (it < 0) throw invalid('a number is negative')
  return it
}

/** Reads a decimal number of a pax record, or of a map. */
const decimal = (text: string): number => {
  const it = /^[0-9]{1,16}$/.test(text) ? Number(text) : Number.NaN
  if (!Number.isSafeInteger(it)) throw invalid('a pax record holds a number that is none')
  return it
}

/** Checks the sum of all bytes with the field itself as spaces; old writers took the bytes as signed. */
const isSummed = (block: Buffer): boolean => {
  let unsigned = 8 * 32
  let signed = unsigned
  for (let at = 0; at < BLOCK; at++) {
    if (at === 148) at = 156
    const byte = block[at] ?? 0
    unsigned += byte
    signed += byte < 128 ? byte : byte - 256
  }
  const stated = number(block.subarray(148, 156))
  return stated === unsigned || stated === signed
}

/** What pax headers say over the plain ones; all but the attributes, which this reader has no use for. */
interface Pax {
  path?: string
  linkpath?: string
  size?: number
  uid?: number
  gid?: number
  mtime?: number
  sparse?: { major: number; name?: string; size?: number; pieces: [number, number][] }
}

const sparseRecord = (pax: Pax, key: string, value: Buffer): void => {
  const sparse = (pax.sparse ??= { major: 0, pieces: [] })
  const text = value.toString('latin1')
  if (key === 'major') sparse.major = decimal(text)
  else if (key === 'name') sparse.name = text
  else if (key === 'size' || key === 'realsize') sparse.size = decimal(text)
  else if (key === 'offset') sparse.pieces.push([decimal(text), 0])
  else if (key === 'numbytes') {
    const last = sparse.pieces.at(-1)
    if (last === undefined) throw invalid('a sparse map is out of order')
    last[1] = decimal(text)
  } else if (key === 'map') {
    const all = text.split(',').map(decimal)
    if (all.length % 2 !== 0) throw invalid('a sparse map is out of order')
    sparse.pieces = []
    for (let at = 0; at < all.length; at += 2) sparse.pieces.push([all[at] ?? 0, all[at + 1] ?? 0])
  }
}

const paxRecord = (pax: Pax, key: string, value: Buffer): void => {
  switch (key) {
    case 'path':
    case 'linkpath':
      // An empty value takes back what a global header said.
      if (value.length > 0) pax[key] = nameOfBytes(value)
      else delete pax[key]
      break
    case 'size':
    case 'uid':
    case 'gid':
      if (value.length > 0) pax[key] = decimal(value.toString('latin1'))
      else delete pax[key]
      break
    case 'mtime': {
      const seconds = Number(value.toString('latin1'))
      if (value.length === 0) delete pax.mtime
      else if (Math.abs(seconds) <= TIME_MAX) pax.mtime = seconds
      break
    }
    default:
      if (key.startsWith('GNU.sparse.')) sparseRecord(pax, key.slice('GNU.sparse.'.length), value)
  }
}

/** Reads records of the form `LENGTH KEY=VALUE\n`, where the length counts all of it. */
const readPax = (pax: Pax, body: Buffer): void => {
  const bad = () => invalid('a pax record is malformed')
  for (let at = 0; at < body.length; ) {
    const space = body.indexOf(0x20, at)
    if (space < 0) throw bad()
    const length = decimal(body.toString('latin1', at, space))
    const end = at + length
    if (end <= space + 1 || end > body.length || body[end - 1] !== 0x0a) throw bad()
    const equals = body.indexOf(0x3d, space + 1)
    if (equals < 0 || equals >= end) throw bad()
    paxRecord(pax, body.toString('latin1', space + 1, equals), body.subarray(equals + 1, end - 1))
    at = end
  }
}

/**
 * Checks that the pieces of a map are in order, inside of the file, and as long as the data that the archive holds of
 * it.
 */
const sparseOf = (size: number, pieces: readonly (readonly [number, number])[], stored: number): Sparse => {
  let end = 0
  let held = 0
  for (const [offset, length] of pieces) {
    if (offset < end || offset + length > size) throw invalid('a sparse map is out of order')
    end = offset + length
    held += length
  }
  if (held !== stored) throw invalid('a sparse map and the size of its data differ')
  return { size, pieces: pieces.filter(([, length]) => length > 0) }
}

/** Reads the names of a plain header; POSIX has a second field for the front of a long one. */
const plainName = (block: Buffer): string => {
  const name = nameOfBytes(untilNul(block.subarray(0, 100)))
  if (block.toString('latin1', 257, 263) !== 'ustar\0') return name
  const prefix = nameOfBytes(untilNul(block.subarray(345, 500)))
  return prefix === '' ? name : `${prefix}/${name}`
}

/** What a reader of a stream is: two libraries of types call it two things. */
interface Source {
  read(): Promise<{ readonly done: boolean; readonly value?: Uint8Array | undefined }>
  cancel(): Promise<void>
}

/** Reads a tar archive entry by entry; what it says of itself is not trusted. */
export class TarReader {
  readonly #source: Source
  #held: Buffer = Buffer.alloc(0)
  #ended = false
  /** Data of the current entry that nobody took. */
  #left = 0
  #padding = 0
  readonly #global: Pax = {}

  constructor(stream: ReadableStream<Uint8Array>) {
    this.#source = stream.getReader()
  }

  /** Lets the stream go. */
  async cancel(): Promise<void> {
    await this.#source.cancel().catch(() => undefined)
  }

  /** Fetches more of the stream; false at its end. An error of the stream that is no fault yet becomes one. */
  async #more(): Promise<boolean> {
    if (this.#ended) return false
    try {
      const { done, value } = await this.#source.read()
      if (done || value === undefined) {
        this.#ended = true
        return false
      }
      const piece = Buffer.from(value.buffer, value.byteOffset, value.byteLength)
      this.#held = this.#held.length === 0 ? piece : Buffer.concat([this.#held, piece])
      return true
    } catch (error) {
      if (error instanceof Fault) throw error
      throw archiveInvalid({ reason: messageOf(error).replace(/\.$/, '') }, error)
    }
  }

  /** Takes exactly so many bytes, or all that are left of the stream. */
  async #take(bytes: number): Promise<Buffer> {
    while (this.#held.length < bytes && (await this.#more()));
    const taken = this.#held.subarray(0, bytes)
    this.#held = this.#held.subarray(taken.length)
    return taken
  }

  async #block(): Promise<Buffer | undefined> {
    const block = await this.#take(BLOCK)
    if (block.length === 0) return undefined
    if (block.length < BLOCK) throw invalid('it ends in the middle of a header')
    if (block.every((byte) => byte === 0)) return undefined
    if (!isSummed(block)) throw invalid('it is no tar, or a header of it is damaged')
    return block
  }

  async #passOver(): Promise<void> {
    while (this.#left > 0) await this.#piece()
    // The last padding of an archive is missing at times.
    const padded = await this.#take(this.#padding)
    if (padded.length !== 0 && padded.length !== this.#padding) throw invalid('it ends in the middle of an entry')
    this.#padding = 0
  }

  async #piece(): Promise<Buffer> {
    if (this.#held.length === 0 && !(await this.#more())) throw invalid('it ends in the middle of an entry')
    const piece = this.#held.subarray(0, this.#left)
    this.#held = this.#held.subarray(piece.length)
    this.#left -= piece.length
    return piece
  }

  #expect(size: number): void {
    this.#left = size
    this.#padding = padding(size)
  }

  async #extension(size: number): Promise<Buffer> {
    if (size > EXTENSION_BYTES_MAX) throw invalid('an extended header is longer than 4 MiB')
    this.#expect(size)
    const body = await this.#take(size)
    if (body.length < size) throw invalid('it ends in the middle of a header')
    this.#left = 0
    return body
  }

  /** Reads the next entry, undefined at the end. What nobody took of the last one's data is passed over. */
  async next(): Promise<Entry | undefined> {
    const pax: Pax = { ...this.#global }
    for (;;) {
      await this.#passOver()
      const block = await this.#block()
      if (!block) return undefined
      const flag = block.toString('latin1', 156, 157)
      const size = natural(block.subarray(124, 136))
      if (flag === 'x' || flag === 'g') {
        const body = await this.#extension(size)
        if (flag === 'g') readPax(this.#global, body)
        readPax(pax, body)
      } else if (flag === 'L') pax.path = nameOfBytes(untilNul(await this.#extension(size)))
      else if (flag === 'K') pax.linkpath = nameOfBytes(untilNul(await this.#extension(size)))
      else return await this.#entry(block, flag, size, pax)
    }
  }

  async #entry(block: Buffer, flag: string, stated: number, pax: Pax): Promise<Entry> {
    const name = pax.sparse?.name ?? pax.path ?? plainName(block)
    let type: Entry['type'] = TYPES[flag] ?? 'unknown'
    // Before POSIX a folder was a file whose name ends so.
    if (type === 'file' && name.endsWith('/')) type = 'directory'
    // Some writers state the size of what a link leads to: only files, and kinds that we do not know, have data.
    const size = type === 'file' || type === 'unknown' ? (pax.size ?? stated) : 0
    this.#expect(size)
    let sparse: Sparse | undefined
    if (type === 'file' && flag === 'S') sparse = await this.#oldMap(block, size)
    else if (type === 'file' && pax.sparse) sparse = await this.#paxMap(pax.sparse)
    const device = type === 'character-device' || type === 'block-device'
    return {
      name,
      type,
      mode: natural(block.subarray(100, 108)) & 0o7777,
      uid: pax.uid ?? natural(block.subarray(108, 116)),
      gid: pax.gid ?? natural(block.subarray(116, 124)),
      size: this.#left,
      mtime: pax.mtime ?? number(block.subarray(136, 148)),
      linkname: pax.linkpath ?? nameOfBytes(untilNul(block.subarray(157, 257))),
      devmajor: device ? natural(block.subarray(329, 337)) : 0,
      devminor: device ? natural(block.subarray(337, 345)) : 0,
      sparse,
    }
  }

  /** Reads the map of a GNU header of type S: four pieces in the header, 21 in each block that follows. */
  async #oldMap(block: Buffer, size: number): Promise<Sparse> {
    const pieces: [number, number][] = []
    const collect = (from: Buffer, count: number): void => {
      for (let at = 0; at < count; at++) {
        const offset = from.subarray(at * 24, at * 24 + 12)
        if (offset[0] === 0) return
        pieces.push([natural(offset), natural(from.subarray(at * 24 + 12, at * 24 + 24))])
      }
      if (pieces.length > PIECES_MAX) throw invalid('a sparse file has too many pieces')
    }
    collect(block.subarray(386), 4)
    for (let more = block[482] !== 0; more; ) {
      const next = await this.#take(BLOCK)
      if (next.length < BLOCK) throw invalid('it ends in the middle of a header')
      collect(next, 21)
      more = next[504] !== 0
    }
    return sparseOf(natural(block.subarray(483, 495)), pieces, size)
  }

  /** Reads the map of a pax sparse file, which stands in its records (0.0, 0.1) or in front of its data (1.0). */
  async #paxMap({ major, size, pieces }: NonNullable<Pax['sparse']>): Promise<Sparse> {
    if (size === undefined) throw invalid('a sparse file has no size')
    if (major === 0) return sparseOf(size, pieces, this.#left)
    if (major !== 1) throw invalid('a sparse file is of an unknown format')
    const numbers: number[] = []
    let wanted = 1
    let line = ''
    while (numbers.length < wanted) {
      const block = this.#left < BLOCK ? Buffer.alloc(0) : await this.#take(BLOCK)
      if (block.length < BLOCK) throw invalid('a sparse map is cut off')
      this.#left -= BLOCK
      for (const byte of block) {
        if (byte !== 0x0a) {
          line += String.fromCharCode(byte)
          if (line.length > 20) throw invalid('a sparse map is no list of numbers')
          continue
        }
        numbers.push(decimal(line))
        line = ''
        if (numbers.length === 1) wanted = 1 + 2 * (numbers[0] ?? 0)
        if (wanted > 2 * PIECES_MAX) throw invalid('a sparse file has too many pieces')
        if (numbers.length === wanted) break
      }
    }
    const map: [number, number][] = []
    for (let at = 1; at < numbers.length; at += 2) map.push([numbers[at] ?? 0, numbers[at + 1] ?? 0])
    return sparseOf(size, map, this.#left)
  }

  /** Reads the data of the current entry, piece by piece; each is good until the next is asked for. */
  async *data(): AsyncGenerator<Uint8Array, void> {
    while (this.#left > 0) yield await this.#piece()
  }

  /**
   * Reads on to the end of the stream, so that whoever writes it is not cut off: tar pads with more than two blocks.
   */
  async drain(): Promise<void> {
    do this.#held = Buffer.alloc(0)
    while (await this.#more())
  }
}
