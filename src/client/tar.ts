/**
 * A file or folder of this host as a tar stream.
 *
 * What a tar cannot say is left out with a word (sockets); what cannot be read ends the stream with a fault, so that whoever unpacks it
 * never takes half a tree for a whole one.
 */
import { basename, join } from 'node:path'
import {
  closeSync,
  constants,
  lstatSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
  realpathSync,
  type BigIntStats,
  type Stats,
} from 'node:fs'
import { Type } from '@sinclair/typebox'
import { fault, Fault } from '../lib/fault.ts'
import { xattrsOf, type Xattr } from '../linux/xattr.ts'
import { encodeHeader, padding, TAR_END, type Header } from './tar-header.ts'

export const pathMissing = fault(
  'path_missing',
  'not_found',
  { path: Type.String() },
  (d) => `Cannot find "${d.path}" on this host`,
)
export const pathUnreadable = fault(
  'path_unreadable',
  'forbidden',
  { path: Type.String(), reason: Type.String() },
  (d) => `Cannot read "${d.path}": ${d.reason}`,
  'Nothing was changed',
)
export const pathChanged = fault(
  'path_changed',
  'conflict',
  { path: Type.String() },
  (d) => `Cannot read "${d.path}": it became shorter meanwhile`,
  'Try again when nobody writes to it',
)
export const pathUnpackable = fault(
  'path_unpackable',
  'invalid',
  { path: Type.String(), reason: Type.String() },
  (d) => `Cannot pack "${d.path}": ${d.reason}`,
)

export interface PackOptions {
  /** What the top is called in the archive; "" leaves the top itself out and packs what is in it. */
  readonly as?: string
  /** `root`: everything belongs to 0:0, as docker cp does. `keep`: as on the disk, and our own user becomes root where we are not root. */
  readonly owners?: 'root' | 'keep'
  /** Device nodes, which only root file systems have. */
  readonly devices?: boolean
  /** Extended attributes that belong to a file and not to this host: file capabilities, ACLs, `user.` and `trusted.`. */
  readonly xattrs?: boolean
  /** Called for what is left out, and with the bytes so far. */
  readonly skipped?: (path: string, reason: string) => void
  readonly progress?: (bytes: number) => void
  /** Called with what ended the stream: an upload says only that its body ended too early. */
  readonly failed?: (error: unknown) => void
}

const CHUNK = 256 * 1024
const REASON: Readonly<Record<string, string>> = {
  EACCES: 'this user may not',
  EPERM: 'this user may not',
  ELOOP: 'its symbolic links lead in circles',
  ENAMETOOLONG: 'its name is too long',
  EIO: 'the disk fails',
  ENOENT: 'it went away meanwhile',
}

const unreadable = (path: string, error: unknown): Fault => {
  if (error instanceof Fault) return error
  const code = String((error as { code?: unknown }).code ?? '')
  return pathUnreadable(
    { path, reason: REASON[code] ?? (error instanceof Error ? error.message : String(error)) },
    error,
  )
}
const trying = <T>(path: string, work: () => T): T => {
  try {
    return work()
  } catch (error) {
    throw unreadable(path, error)
  }
}

/**
 * Which attributes a file keeps when it goes to another host. Of `security.` the capabilities alone: labels and signatures are of this host's
 * policy and keys. ACLs go as the kernel has them, with numbers, as owners do. What overlayfs notes in a folder is no part of the tree.
 */
const PORTABLE =
  /^(security\.capability|system\.posix_acl_(access|default)|user\.(?!overlay\.).*|trusted\.(?!overlay\.).*)$/s

/** Linux's split of a device number (sysmacros.h). */
const major = (device: bigint): number => Number(((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xfffff000n))
const minor = (device: bigint): number => Number((device & 0xffn) | ((device >> 12n) & 0xffffff00n))

/** Walks what is to be packed (synchronous calls: a promise a call costs five times the call on a tree of small files); a name that a file had before becomes a hard link to it. */
class Packer {
  readonly #options: PackOptions
  readonly #first = new Map<string, string>()
  readonly #uid = process.getuid?.() ?? 0
  readonly #gid = process.getgid?.() ?? 0
  #bytes = 0

  constructor(options: PackOptions) {
    this.#options = options
  }

  #xattrs(path: string): readonly Xattr[] {
    return trying(path, () => xattrsOf(path)).filter(({ name }) => {
      if (!PORTABLE.test(name.toString('latin1'))) return false
      if (!name.includes('=')) return true
      this.#options.skipped?.(path, `its attribute "${name.toString()}" has a name that no tar can say`)
      return false
    })
  }

  #header(path: string, name: string, stat: BigIntStats, rest: Pick<Header, 'type'> & Partial<Header>): Buffer {
    let uid = 0
    let gid = 0
    if (this.#options.owners === 'keep') {
      uid = this.#uid !== 0 && Number(stat.uid) === this.#uid ? 0 : Number(stat.uid)
      gid = this.#uid !== 0 && Number(stat.gid) === this.#gid ? 0 : Number(stat.gid)
    }
    return encodeHeader({
      name,
      mode: Number(stat.mode & 0o7777n),
      mtime: Number(stat.mtimeMs / 1000n),
      uid,
      gid,
      size: 0,
      ...rest,
      ...(this.#options.xattrs === true && rest.type !== 'link' && { xattrs: this.#xattrs(path) }),
    })
  }

  async *add(path: string, name: string): AsyncGenerator<Uint8Array, void> {
    const stat = trying(path, () => lstatSync(path, { bigint: true }))
    if (stat.isDirectory()) {
      yield* this.#folder(path, name, stat)
      return
    }
    const key = `${stat.dev}:${stat.ino}`
    const first = stat.nlink > 1n ? this.#first.get(key) : undefined
    if (first !== undefined) {
      yield this.#header(path, name, stat, { type: 'link', linkname: first })
      return
    }
    if (stat.nlink > 1n) this.#first.set(key, name)
    if (stat.isFile()) yield* this.#file(path, name, stat)
    else if (stat.isSymbolicLink())
      yield this.#header(path, name, stat, { type: 'symlink', linkname: trying(path, () => readlinkSync(path)) })
    else if (stat.isFIFO()) yield this.#header(path, name, stat, { type: 'fifo' })
    else if (this.#options.devices === true && (stat.isBlockDevice() || stat.isCharacterDevice())) {
      yield this.#header(path, name, stat, {
        type: stat.isBlockDevice() ? 'block-device' : 'character-device',
        devmajor: major(stat.rdev),
        devminor: minor(stat.rdev),
      })
    } else this.#options.skipped?.(path, stat.isSocket() ? 'it is a socket' : 'it is a device')
  }

  async *#folder(path: string, name: string, stat: BigIntStats): AsyncGenerator<Uint8Array, void> {
    if (name !== '') yield this.#header(path, `${name}/`, stat, { type: 'directory' })
    const names = trying(path, () => readdirSync(path, { encoding: 'buffer' }))
    for (const raw of names.sort(Buffer.compare)) {
      const entry = raw.toString('utf8')
      if (!Buffer.from(entry).equals(raw))
        throw pathUnpackable({ path: join(path, entry), reason: 'its name is not UTF-8' })
      yield* this.add(join(path, entry), name === '' ? entry : `${name}/${entry}`)
    }
  }

  async *#file(path: string, name: string, stat: BigIntStats): AsyncGenerator<Uint8Array, void> {
    const file = trying(path, () => openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK))
    const size = Number(stat.size)
    try {
      yield this.#header(path, name, stat, { type: 'file', size })
      // Exactly what the header says: a log that grows while it is read is cut, one that shrinks is an error.
      for (let left = size; left > 0; ) {
        const buffer = Buffer.allocUnsafe(Math.min(CHUNK, left))
        const read = trying(path, () => readSync(file, buffer, 0, buffer.length, null))
        if (read === 0) throw pathChanged({ path })
        left -= read
        this.#bytes += read
        this.#options.progress?.(this.#bytes)
        yield buffer.subarray(0, read)
      }
    } finally {
      closeSync(file)
    }
    if (padding(size) > 0) yield Buffer.alloc(padding(size))
  }
}

/** Small pieces travel together: a tree of small files would be one write a header. */
async function* gather(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void> {
  let held: Uint8Array[] = []
  let size = 0
  for await (const piece of pieces) {
    held.push(piece)
    size += piece.length
    if (size < CHUNK) continue
    yield Buffer.concat(held)
    held = []
    size = 0
  }
  yield Buffer.concat([...held, TAR_END])
}

const asWeb = (pieces: AsyncIterable<Uint8Array>, failed: PackOptions['failed']): ReadableStream<Uint8Array> => {
  const gathered = gather(pieces)
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { done, value } = await gathered.next()
          if (done) controller.close()
          else controller.enqueue(value)
        } catch (error) {
          failed?.(error)
          throw error
        }
      },
      async cancel() {
        await gathered.return()
      },
    },
    { highWaterMark: 0 },
  )
}

/** A stat of what is to be packed, before anything is sent. */
export const statLocal = (path: string): Stats => {
  try {
    return lstatSync(path)
  } catch (error) {
    if ((error as { code?: unknown }).code === 'ENOENT') throw pathMissing({ path }, error)
    throw unreadable(path, error)
  }
}

/** Where a path leads when its symbolic links are followed. */
export const realLocal = (path: string): string => {
  try {
    return realpathSync(path)
  } catch (error) {
    if ((error as { code?: unknown }).code === 'ENOENT') throw pathMissing({ path }, error)
    throw unreadable(path, error)
  }
}

/** One path, or several under names of their own, as one archive. */
export const packPath = (path: string, options: PackOptions = {}): ReadableStream<Uint8Array> =>
  asWeb(new Packer(options).add(path, options.as ?? basename(path)), options.failed)

export const packAll = (
  entries: readonly { readonly path: string; readonly as: string }[],
  options: Omit<PackOptions, 'as'> = {},
): ReadableStream<Uint8Array> => {
  const packer = new Packer(options)
  return asWeb(
    (async function* () {
      for (const { path, as } of entries) yield* packer.add(path, as)
    })(),
    options.failed,
  )
}
