/**
 * A file or folder of this host as a tar stream.
 *
 * What a tar cannot say is left out with a word (sockets), and so is what other file systems hold that are mounted in a
 * folder. What cannot be read ends the stream with a fault, so that whoever unpacks it never takes half a tree for a
 * whole one.
 */
import { basename, dirname, resolve } from 'node:path'
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  realpathSync,
  statSync,
  type BigIntStats,
  type Stats,
} from 'node:fs'
import { Type } from '@sinclair/typebox'
import { fault, Fault } from '../lib/fault.ts'
import { nextData, nextHole } from '../linux/file.ts'
import { spaceOf } from '../linux/path.ts'
import { xattrsOf, type Xattr } from '../linux/xattr.ts'
import { OPEN_FOLDER, pathIn, pathOfFd } from './folder-walk.ts'
import { BLOCK, encodeHeader, padding, TAR_END, type Header, type Sparse } from './tar-header.ts'
import { messageOf } from '../lib/thrown.ts'
import { bytesOfName, nameOfBytes, nameOfText, sayName } from './tar-name.ts'

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
  { path: Type.String(), reason: Type.String() },
  (d) => `Cannot read "${d.path}": ${d.reason}`,
  'Try again when nobody writes to it',
)
export const pathUnpackable = fault(
  'path_unpackable',
  'invalid',
  { path: Type.String(), reason: Type.String() },
  (d) => `Cannot pack "${d.path}": ${d.reason}`,
)

/** What an archive holds of the files that are packed into it. */
export interface PackOptions {
  /** What the top is called in the archive; "" leaves the top itself out and packs what is in it. */
  readonly as?: string
  /**
   * `root`: everything belongs to 0:0, as docker cp does. `keep`: as on the disk, and our own user becomes root where
   * we are not root.
   */
  readonly owners?: 'root' | 'keep'
  /** Device nodes, which only root file systems have. */
  readonly devices?: boolean
  /**
   * Extended attributes that belong to a file and not to this host: file capabilities, ACLs, `user.` and `trusted.`.
   */
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
  ENOTDIR: 'it is no folder',
  ENOENT: 'it went away meanwhile',
}

/** @param shown  a byte string */
const unreadable = (shown: string, error: unknown): Fault => {
  if (error instanceof Fault) return error
  const path = bytesOfName(shown).toString()
  const code = String((error as { code?: unknown }).code ?? '')
  return pathUnreadable({ path, reason: REASON[code] ?? messageOf(error) }, error)
}
const trying = <T>(shown: string, work: () => T): T => {
  try {
    return work()
  } catch (error) {
    throw unreadable(shown, error)
  }
}

/**
 * Which attributes a file keeps when it goes to another host. Of `security.` the capabilities alone: labels and
 * signatures are of this host's policy and keys. ACLs go as the kernel has them, with numbers, as owners do. What
 * overlayfs notes in a folder is no part of the tree.
 */
const PORTABLE =
  /^(security\.capability|system\.posix_acl_(access|default)|user\.(?!overlay\.).*|trusted\.(?!overlay\.).*)$/s

/**
 * One thing that is to be packed: where it stands, and what it is called in the archive and in sentences. Names are
 * byte strings.
 */
interface Place {
  readonly folder: number
  readonly base: string
  readonly name: string
  readonly shown: string
}

/** What tells one file system from another that is mounted in it. */
interface Mount {
  readonly device: bigint
  readonly id: string | undefined
}

/** Takes the major number out of a device's, as Linux does (sysmacros.h). */
const major = (device: bigint): number => Number(((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xfffff000n))
const minor = (device: bigint): number => Number((device & 0xffn) | ((device >> 12n) & 0xffffff00n))

/**
 * File systems that the kernel makes up (linux/magic.h): some of their files refuse to be read, whatever their mode
 * says.
 */
const KERNEL_VIEWS = new Set([
  0x9fa0, // proc
  0x62656572, // sysfs
  0x63677270, // cgroup2
  0x27e0eb, // cgroup
  0x74726163, // tracefs
  0x64626720, // debugfs
  0x73636673, // securityfs
  0xcafe4a11, // bpf
  0x6165676c, // pstore
])
const isKernelView = (folder: number): boolean => KERNEL_VIEWS.has(spaceOf(pathOfFd(folder)).magic)

/** A file whose length is not known before it is read is held whole, so much of it at most. */
const UNSIZED_BYTES_MAX = 64 * 1024 * 1024
/** Pieces of a sparse file that are told apart; what is behind the last counts as data. */
const PIECES_MAX = 65_536

/** Tells which mount a descriptor is in; undefined where the kernel does not say (proc_pid_fdinfo(5)). */
const mountOf = (fd: number): string | undefined =>
  /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1]

/** What is read of one file, before its header is written: the header states a length, which must be true. */
type Content =
  | { readonly kind: 'held'; readonly bytes: Buffer }
  | { readonly kind: 'sparse'; readonly sparse: Sparse }
  | { readonly kind: 'stream'; readonly size: number }

/** Reads to the end of a file, or to `limit` bytes. */
const readAll = (file: number, expected: number, limit: number): Buffer => {
  const parts: Buffer[] = []
  let total = 0
  for (;;) {
    const room = Buffer.allocUnsafe(Math.min(Math.max(expected - total, 4096), CHUNK))
    const read = readSync(file, room, 0, room.length, total)
    if (read === 0) break
    parts.push(room.subarray(0, read))
    total += read
    if (total >= limit) break
  }
  return parts.length === 1 ? (parts[0] ?? Buffer.alloc(0)) : Buffer.concat(parts)
}

/** Finds the parts of a file that hold data; undefined where it has no holes, or its file system does not say. */
const piecesOf = (file: number, size: number): Sparse | undefined => {
  const pieces: [number, number][] = []
  try {
    for (let at = nextData(file, 0); at !== undefined && at < size; at = nextData(file, at)) {
      const end = pieces.length < PIECES_MAX - 1 ? Math.min(nextHole(file, at), size) : size
      pieces.push([at, end - at])
      if (end === size) break
      at = end
    }
  } catch {
    return undefined
  }
  const whole = pieces.length === 1 && pieces[0]?.[1] === size
  return whole ? undefined : { size, pieces }
}

/**
 * Walks what is to be packed (synchronous calls: a promise a call costs five times the call on a tree of small files);
 * a name that a file had before becomes a hard link to it. Each folder is held open while what is in it is read, so
 * that who swaps one for a link leads nowhere.
 */
class Packer {
  readonly #options: PackOptions
  readonly #first = new Map<string, string>()
  readonly #uid = process.getuid?.() ?? 0
  readonly #gid = process.getgid?.() ?? 0
  #bytes = 0

  constructor(options: PackOptions) {
    this.#options = options
  }

  #xattrs(path: Buffer, shown: string): readonly Xattr[] {
    return trying(shown, () => xattrsOf(path)).filter(({ name }) => {
      if (!PORTABLE.test(name.toString('latin1'))) return false
      if (!name.includes('=')) return true
      this.#options.skipped?.(sayName(shown), `its attribute "${name.toString()}" has a name that no tar can say`)
      return false
    })
  }

  #header(at: Place, stat: BigIntStats, rest: Pick<Header, 'type'> & Partial<Header>): Buffer {
    let uid = 0
    let gid = 0
    if (this.#options.owners === 'keep') {
      uid = this.#uid !== 0 && Number(stat.uid) === this.#uid ? 0 : Number(stat.uid)
      gid = this.#uid !== 0 && Number(stat.gid) === this.#gid ? 0 : Number(stat.gid)
    }
    return encodeHeader({
      name: at.name,
      mode: Number(stat.mode & 0o7777n),
      mtime: Number(stat.mtimeMs / 1000n),
      uid,
      gid,
      size: 0,
      ...rest,
      ...(this.#options.xattrs === true &&
        rest.type !== 'link' && { xattrs: this.#xattrs(pathIn(at.folder, at.base), at.shown) }),
    })
  }

  /** Packs what stands at a path of this host, under a name (a byte string) of the archive. */
  async *add(path: string, name: string): AsyncGenerator<Uint8Array, void> {
    const shown = nameOfText(path)
    const folder = trying(shown, () => openSync(dirname(path), OPEN_FOLDER))
    try {
      yield* this.#entry({ folder, base: nameOfText(basename(path)), name, shown }, undefined)
    } finally {
      closeSync(folder)
    }
  }

  async *#entry(at: Place, mount: Mount | undefined): AsyncGenerator<Uint8Array, void> {
    const path = pathIn(at.folder, at.base)
    const stat = trying(at.shown, () => lstatSync(path, { bigint: true }))
    if (stat.isDirectory()) {
      yield* this.#folder(at, stat, mount)
      return
    }
    const key = `${stat.dev}:${stat.ino}`
    const first = stat.nlink > 1n ? this.#first.get(key) : undefined
    if (first !== undefined) {
      yield this.#header(at, stat, { type: 'link', linkname: first })
      return
    }
    if (stat.isFile()) {
      if (!(yield* this.#file(at))) return
    } else if (stat.isSymbolicLink()) {
      const target = trying(at.shown, () => readlinkSync(path, { encoding: 'buffer' }))
      yield this.#header(at, stat, { type: 'symlink', linkname: nameOfBytes(target) })
    } else if (stat.isFIFO()) yield this.#header(at, stat, { type: 'fifo' })
    else if (this.#options.devices === true && (stat.isBlockDevice() || stat.isCharacterDevice())) {
      yield this.#header(at, stat, {
        type: stat.isBlockDevice() ? 'block-device' : 'character-device',
        devmajor: major(stat.rdev),
        devminor: minor(stat.rdev),
      })
    } else {
      const reason = stat.isSocket() ? 'it is a socket' : 'it is a device'
      // What was named itself is not left out: nothing would be copied.
      if (!mount) throw pathUnpackable({ path: sayName(at.shown), reason })
      this.#options.skipped?.(sayName(at.shown), reason)
      return
    }
    if (stat.nlink > 1n) this.#first.set(key, at.name)
  }

  async *#folder(at: Place, stat: BigIntStats, mount: Mount | undefined): AsyncGenerator<Uint8Array, void> {
    const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
    const folder = trying(at.shown, () => openSync(pathIn(at.folder, at.base), flags))
    try {
      if (at.name !== '') yield this.#header({ ...at, name: `${at.name}/` }, stat, { type: 'directory' })
      const here: Mount = {
        device: trying(at.shown, () => fstatSync(folder, { bigint: true })).dev,
        id: mountOf(folder),
      }
      // A subvolume of Btrfs has a device number of its own and is no mount.
      if (mount && mount.device !== here.device && (mount.id !== here.id || here.id === undefined)) {
        this.#options.skipped?.(sayName(at.shown), 'another file system is mounted there; the folder itself is taken')
        return
      }
      const names = trying(at.shown, () => readdirSync(pathOfFd(folder), { encoding: 'buffer' }))
      for (const raw of names.sort(Buffer.compare)) {
        const base = nameOfBytes(raw)
        const name = at.name === '' ? base : `${at.name}/${base}`
        yield* this.#entry({ folder, base, name, shown: `${at.shown === '/' ? '' : at.shown}/${base}` }, mount ?? here)
      }
    } finally {
      closeSync(folder)
    }
  }

  /** Says whether the file was packed: one of the kernel's that refuses is left out, with a word. */
  async *#file(at: Place): AsyncGenerator<Uint8Array, boolean> {
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
    let file: number | undefined
    let content: Content
    let stat: BigIntStats
    try {
      try {
        file = openSync(pathIn(at.folder, at.base), flags)
        // Not what was seen before, if another file has the name now: what is open counts.
        stat = fstatSync(file, { bigint: true })
        content = this.#content(file, at.shown, stat)
      } catch (error) {
        // One that was named itself is not left out.
        if (error instanceof Fault || !at.name.includes('/') || !isKernelView(at.folder)) throw error
        this.#options.skipped?.(sayName(at.shown), 'the kernel refuses to say what is in it')
        return false
      }
      const open = file
      if (content.kind === 'held') {
        const size = content.bytes.length
        yield this.#header(at, stat, { type: 'file', size })
        yield this.#counted(content.bytes)
        if (padding(size) > 0) yield Buffer.alloc(padding(size))
        return true
      }
      const sparse = content.kind === 'sparse' ? content.sparse : undefined
      const pieces = content.kind === 'sparse' ? content.sparse.pieces : [[0, content.size] as const]
      const size = pieces.reduce((sum, [, length]) => sum + length, 0)
      yield this.#header(at, stat, { type: 'file', size, ...(sparse && { sparse }) })
      for (const [offset, length] of pieces) {
        // Exactly what the header says: a log that grows while it is read is cut, one that shrinks is an error.
        for (let done = 0; done < length; ) {
          const buffer = Buffer.allocUnsafe(Math.min(CHUNK, length - done))
          const read = trying(at.shown, () => readSync(open, buffer, 0, buffer.length, offset + done))
          if (read === 0) throw pathChanged({ path: sayName(at.shown), reason: 'it became shorter meanwhile' })
          done += read
          yield this.#counted(buffer.subarray(0, read))
        }
      }
      if (padding(size) > 0) yield Buffer.alloc(padding(size))
      return true
    } catch (error) {
      throw unreadable(at.shown, error)
    } finally {
      if (file !== undefined) closeSync(file)
    }
  }

  /**
   * Files of /proc state no length and those of /sys too much, so a small file is read to its end first, and has the
   * length that it turned out to have.
   */
  #content(file: number, shown: string, stat: BigIntStats): Content {
    if (!stat.isFile()) throw pathChanged({ path: sayName(shown), reason: 'it was replaced meanwhile' })
    const size = Number(stat.size)
    if (size > BLOCK && Number(stat.blocks) * 512 + BLOCK <= size) {
      const sparse = piecesOf(file, size)
      if (sparse) return { kind: 'sparse', sparse }
    }
    if (size > CHUNK) return { kind: 'stream', size }
    if (size > 0) {
      const bytes = readAll(file, size, size)
      return { kind: 'held', bytes: bytes.subarray(0, size) }
    }
    const bytes = readAll(file, 0, UNSIZED_BYTES_MAX)
    if (bytes.length >= UNSIZED_BYTES_MAX)
      throw pathUnpackable({ path: sayName(shown), reason: 'it does not say its size, and is 64 MiB or longer' })
    return { kind: 'held', bytes }
  }

  #counted(bytes: Buffer): Buffer {
    this.#bytes += bytes.length
    this.#options.progress?.(this.#bytes)
    return bytes
  }
}

/** Joins small pieces: a tree of small files would be one write a header. */
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

/** Looks at what is to be packed, before anything is sent. */
export const statLocal = (path: string): Stats => {
  try {
    return lstatSync(path)
  } catch (error) {
    if ((error as { code?: unknown }).code === 'ENOENT') throw pathMissing({ path }, error)
    throw unreadable(nameOfText(path), error)
  }
}

/** Tells whether a path of this host leads to anything. */
const isThere = (path: string): boolean => {
  try {
    return statSync(path, { throwIfNoEntry: false }) !== undefined
  } catch {
    return false
  }
}

/**
 * Follows the symbolic links of a path of this host. What a shell's `<(…)` makes is a link of /proc to something without a path: it leads
 * there all the same (proc(5)), and stays as it is.
 */
export const realLocal = (path: string): string => {
  try {
    const real = realpathSync(path)
    // Bun hands out the text of such a link ("pipe:[1]") without a look at whether it is a path.
    return real.startsWith('/') ? real : resolve(path)
  } catch (error) {
    if (isThere(path)) return resolve(path)
    if ((error as { code?: unknown }).code === 'ENOENT') throw pathMissing({ path }, error)
    throw unreadable(nameOfText(path), error)
  }
}

/** Packs one path, or several under names of their own, as one archive. */
export const packPath = (path: string, options: PackOptions = {}): ReadableStream<Uint8Array> =>
  asWeb(new Packer(options).add(path, nameOfText(options.as ?? basename(path))), options.failed)

/** Packs several paths of this host into one archive, each under a name of its own. */
export const packAll = (
  entries: readonly { readonly path: string; readonly as: string }[],
  options: Omit<PackOptions, 'as'> = {},
): ReadableStream<Uint8Array> => {
  const packer = new Packer(options)
  return asWeb(
    (async function* () {
      for (const { path, as } of entries) yield* packer.add(path, nameOfText(as))
    })(),
    options.failed,
  )
}
