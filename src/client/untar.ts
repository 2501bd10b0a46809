/**
 * Unpacks a tar stream into a folder of this host. The stream comes from a guest, so it is hostile.
 *
 * INVARIANTS
 * - Nothing outside of the folder is made, changed or linked to: no absolute name, no `..`, and no name whose way leads
 *   over a symbolic link, whoever made that link, is ever opened. Every folder on the way is held open, so that nobody
 *   can swap one for a link meanwhile.
 * - A file that stands here keeps its owner, its mode less set-id and its other names, and gets other content. A link
 *   that stood here before is followed where it leads to a file inside of the folder, and replaced where it leads out.
 *   A name that the stream itself gave to a link is never written through.
 * - FIFOs, sockets and devices that stand here are neither written to nor replaced; a folder in the way is a fault.
 * - Set-id bits and device nodes do not arrive here; files belong to whoever unpacks, and the umask counts.
 */
import {
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  ftruncateSync,
  futimesSync,
  linkSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  openSync,
  readlinkSync,
  realpathSync,
  symlinkSync,
  unlinkSync,
  writeSync,
  type Stats,
} from 'node:fs'
import { join } from 'node:path'
import { Type } from '@sinclair/typebox'
import { fault, Fault } from '../lib/fault.ts'
import { FolderWalk, openFolderIn, pathIn } from './folder-walk.ts'
import {
  archiveInvalid,
  bytesOfName,
  entryEscapes,
  entryParts,
  NAME_BYTES_MAX,
  nameOfBytes,
  nameOfText,
  sayName,
} from './tar-name.ts'
import { messageOf } from '../lib/thrown.ts'
import { TarReader, type Entry } from './tar-reader.ts'

export const pathUnwritable = fault(
  'path_unwritable',
  'forbidden',
  { path: Type.String(), reason: Type.String() },
  (d) => `Cannot write "${d.path}": ${d.reason}`,
)
export const diskFull = fault(
  'disk_full',
  'exhausted',
  { path: Type.String() },
  (d) => `Cannot write "${d.path}": the disk is full`,
)

/** The most symbolic links that are followed in a row, as many as Linux follows (path_resolution(7)). */
const LINKS_MAX = 40

/** How the entries of an archive are unpacked, and who is told of what was left out. */
export interface UnpackOptions {
  /** Tells where an entry goes, as parts below the folder; undefined leaves it out. */
  readonly rename?: (parts: readonly string[]) => readonly string[] | undefined
  readonly skipped?: (entry: string, reason: string) => void
  readonly progress?: (bytes: number) => void
}

const codeOf = (error: unknown): string => String((error as { code?: unknown }).code ?? '')

const REASON: Readonly<Record<string, string>> = {
  EACCES: 'this user may not',
  EPERM: 'this user may not',
  EROFS: 'the file system is read-only',
  ENAMETOOLONG: 'its name is too long',
  EEXIST: 'something stands there',
  EFBIG: 'the file system holds no file of this size',
  ETXTBSY: 'it is a program that runs',
  ELOOP: 'it became a symbolic link meanwhile',
}

/** Says what kept something of this host from being written. */
export const onDisk = (path: string, error: unknown): Fault => {
  if (error instanceof Fault) return error
  const code = codeOf(error)
  if (code === 'ENOSPC' || code === 'EDQUOT') return diskFull({ path }, error)
  return pathUnwritable({ path, reason: REASON[code] ?? messageOf(error) }, error)
}

/**
 * Looks at what stands at a path; undefined where nothing does, or where it cannot be seen: what is tried next says
 * why.
 */
const look = (path: Buffer): Stats | undefined => {
  try {
    return lstatSync(path, { throwIfNoEntry: false })
  } catch {
    return undefined
  }
}

/** Tells what a copy does not replace and does not write to: the other end is a program or a device, not a file. */
export const specialKind = (stat: Stats): string | undefined => {
  if (stat.isFIFO()) return 'a FIFO'
  if (stat.isSocket()) return 'a socket'
  if (stat.isBlockDevice() || stat.isCharacterDevice()) return 'a device'
  return undefined
}

/** Reads the seconds of an entry as a time; what is no time is now. */
const timeOf = (entry: Entry): Date => {
  const time = new Date(entry.mtime * 1000)
  return Number.isNaN(time.getTime()) ? new Date() : time
}

const CREATE = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
const REWRITE = constants.O_WRONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK

/** The calls are synchronous: on a tree of small files a promise a call costs five times the call. */
class Unpacker implements Disposable {
  readonly #root: string
  readonly #options: UnpackOptions
  readonly #walk: FolderWalk
  /**
   * Names that the stream made and that are not a file's only one: links of both kinds. What is written to such a name
   * replaces the name.
   */
  readonly #links = new Set<string>()
  /** Times of the folders that were made here, and modes that would shut us out: given at the end. */
  readonly #late = new Map<string, { readonly mode: number | undefined; readonly time: Date }>()
  /** Folders that were made here: others keep their mode and time. */
  readonly #fresh = new Set<string>()
  readonly #umask = process.umask()
  entries = 0
  bytes = 0

  constructor(root: string, options: UnpackOptions) {
    this.#root = root
    this.#options = options
    this.#walk = new FolderWalk(root)
  }

  [Symbol.dispose](): void {
    this.#walk[Symbol.dispose]()
  }

  /** Writes a path for sentences. */
  say(key: string): string {
    return join(this.#root, sayName(key))
  }

  /**
   * The folder at these parts, as a descriptor. A link or a file on the way is a fault; `missing` says what to do where
   * nothing is.
   */
  #folder(
    parts: readonly string[],
    entry: string,
    missing: (folder: number, name: string, key: string) => number,
  ): number {
    return this.#walk.to(parts, (folder, name, depth, error) => {
      const key = parts.slice(0, depth + 1).join('/')
      const stat = look(pathIn(folder, name))
      const escapes = (what: string) => entryEscapes({ entry: sayName(entry), reason: `"${sayName(key)}" is ${what}` })
      if (stat?.isSymbolicLink()) throw escapes('a symbolic link')
      if (stat && !stat.isDirectory()) throw escapes('no folder')
      if (stat || codeOf(error) !== 'ENOENT') throw error
      return missing(folder, name, key)
    })
  }

  /** The folder at these parts; what is missing is made, the last with the mode that the umask leaves of `mode`. */
  #made(parts: readonly string[], entry: string, mode = 0o777): number {
    return this.#folder(parts, entry, (folder, name, key) => {
      mkdirSync(pathIn(folder, name), key === parts.join('/') ? mode | 0o700 : 0o777)
      this.#fresh.add(key)
      return openFolderIn(folder, name)
    })
  }

  /**
   * Makes room for a new name: a file or a link that stands there goes. @throws where a folder does, or what is no file
   */
  #clear(path: Buffer, key: string): void {
    const stat = look(path)
    if (!stat) return
    if (stat.isDirectory()) throw pathUnwritable({ path: this.say(key), reason: 'a folder stands there' })
    const special = specialKind(stat)
    if (special !== undefined) throw pathUnwritable({ path: this.say(key), reason: `${special} stands there` })
    unlinkSync(path)
  }

  async add(entry: Entry, data: AsyncIterable<Uint8Array>): Promise<void> {
    const parts = entryParts(entry.name)
    const to = this.#options.rename ? this.#options.rename(parts) : parts
    if (to === undefined || to.length === 0) return
    const key = to.join('/')
    try {
      await this.#put(entry, to, data)
    } catch (error) {
      throw onDisk(this.say(key), error)
    }
  }

  async #put(entry: Entry, to: readonly string[], data: AsyncIterable<Uint8Array>): Promise<void> {
    const key = to.join('/')
    const path = pathIn(this.#made(to.slice(0, -1), entry.name), to.at(-1) ?? '')
    const time = timeOf(entry)
    switch (entry.type) {
      case 'directory': {
        const mode = entry.mode & 0o777
        const known = this.#fresh.has(key)
        this.#made(to, entry.name, mode)
        // One that was made on the way has the mode of no entry yet; one that its owner may not enter gets its own when
        // it is full.
        const late = known || (mode & 0o700) !== 0o700
        if (this.#fresh.has(key)) this.#late.set(key, { mode: late ? mode & ~this.#umask : undefined, time })
        break
      }
      case 'file': {
        const file = this.#open(to, entry)
        try {
          await this.#write(file, entry, data)
          futimesSync(file, time, time)
        } finally {
          closeSync(file)
        }
        break
      }
      case 'symlink': {
        const target = entry.linkname
        if (target === '' || target.includes('\0') || target.length > NAME_BYTES_MAX)
          throw archiveInvalid({ reason: `the link "${sayName(key)}" leads nowhere` })
        this.#clear(path, key)
        symlinkSync(bytesOfName(target), path)
        this.#links.add(key)
        lutimesSync(path, time, time)
        break
      }
      case 'link':
        this.#link(entry, to, key)
        break
      case 'fifo':
      case 'character-device':
      case 'block-device':
        this.#options.skipped?.(sayName(key), entry.type === 'fifo' ? 'it is a fifo' : 'it is a device')
        return
      case 'unknown':
        throw archiveInvalid({ reason: `"${sayName(key)}" is of an unknown kind` })
    }
    this.entries++
  }

  #link(entry: Entry, to: readonly string[], key: string): void {
    const from = entryParts(entry.linkname)
    const target = this.#options.rename ? this.#options.rename(from) : from
    if (target === undefined || target.length === 0)
      throw archiveInvalid({ reason: `"${sayName(key)}" links to what is not unpacked` })
    const absent = () => archiveInvalid({ reason: `"${sayName(key)}" links to what is not there` })
    // The walk leaves the first folder when it goes to the second: the source is held by a descriptor of its own.
    const at = this.#folder(target.slice(0, -1), entry.name, () => {
      throw absent()
    })
    const source = openFolderIn(at, '')
    try {
      const old = pathIn(source, target.at(-1) ?? '')
      const stat = look(old)
      if (!stat) throw absent()
      if (!stat.isFile()) throw entryEscapes({ entry: sayName(entry.name), reason: 'it links to what is no file' })
      const targetKey = target.join('/')
      if (targetKey === key) return
      const path = pathIn(this.#made(to.slice(0, -1), entry.name), to.at(-1) ?? '')
      this.#clear(path, key)
      linkSync(old, path)
      this.#links.add(key).add(targetKey)
    } finally {
      closeSync(source)
    }
  }

  /** A file of this name, empty and open for writing. */
  #open(to: readonly string[], entry: Entry): number {
    const key = to.join('/')
    const path = pathIn(this.#made(to.slice(0, -1), entry.name), to.at(-1) ?? '')
    const mode = entry.mode & 0o777
    const stat = look(path)
    if (!stat) return openSync(path, CREATE, mode)
    if (stat.isDirectory()) throw pathUnwritable({ path: this.say(key), reason: 'a folder stands there' })
    const special = specialKind(stat)
    if (special !== undefined) throw pathUnwritable({ path: this.say(key), reason: `${special} stands there` })
    const ours = this.#links.delete(key)
    if (!ours && stat.isFile()) return this.#rewrite(path, stat, key)
    const target = ours ? undefined : this.#target(to)
    if (target) return this.#open(target, entry)
    unlinkSync(path)
    return openSync(path, CREATE, mode)
  }

  /** Follows a link as `#follow` does; one that leads to no folder of ours is not followed either. */
  #target(parts: readonly string[]): readonly string[] | undefined {
    try {
      return this.#follow(parts)
    } catch (error) {
      if (['ENOENT', 'ENOTDIR'].includes(codeOf(error))) return undefined
      throw error
    }
  }

  /**
   * Finds where a link that stood here before leads, as parts below the root; undefined where its way leads out of the
   * folder, over another link to a folder, or over a link of the archive.
   */
  #follow(parts: readonly string[]): readonly string[] | undefined {
    const entry = parts.join('/')
    const root = `${nameOfText(this.#root === '/' ? '' : this.#root)}/`
    let at = [...parts]
    for (let links = 0; links < LINKS_MAX; links++) {
      const name = at.pop() ?? ''
      const folder = this.#walk.to(at, (_folder, _name, _depth, error) => {
        throw error
      })
      const path = pathIn(folder, name)
      if (look(path)?.isSymbolicLink() !== true) return [...at, name]
      if (links > 0 && this.#links.has([...at, name].join('/'))) return undefined
      let target = nameOfBytes(readlinkSync(path, { encoding: 'buffer' }))
      if (target.startsWith('/')) {
        if (!target.startsWith(root)) return undefined
        target = target.slice(root.length)
        at = []
      }
      for (const part of target.split('/')) {
        if (part === '' || part === '.') continue
        if (part !== '..') at.push(part)
        else if (at.pop() === undefined) return undefined
      }
      if (at.length === 0) return undefined
    }
    throw pathUnwritable({ path: this.say(entry), reason: 'its symbolic links lead in circles' })
  }

  /**
   * Opens a file that stands here. One that may not be written to, or that runs, is replaced by one of the same mode
   * and owner.
   */
  #rewrite(path: Buffer, stat: Stats, key: string): number {
    let file: number
    try {
      file = openSync(path, REWRITE)
    } catch (error) {
      if (codeOf(error) !== 'ETXTBSY' && (codeOf(error) !== 'EACCES' || stat.nlink > 1)) throw error
      unlinkSync(path)
      file = openSync(path, CREATE, 0o600)
      try {
        if (process.getuid?.() === 0) fchownSync(file, stat.uid, stat.gid)
        fchmodSync(file, stat.mode & 0o777)
      } catch (failed) {
        closeSync(file)
        throw failed
      }
      return file
    }
    try {
      if (!fstatSync(file).isFile()) throw pathUnwritable({ path: this.say(key), reason: 'it was replaced meanwhile' })
      ftruncateSync(file, 0)
      // Another's content must not run as the file's owner: to root, Linux leaves the bits at a write.
      if ((stat.mode & 0o6000) !== 0) fchmodSync(file, stat.mode & 0o1777)
      return file
    } catch (error) {
      closeSync(file)
      throw error
    }
  }

  async #write(file: number, entry: Entry, data: AsyncIterable<Uint8Array>): Promise<void> {
    const pieces = entry.sparse?.pieces ?? [[0, entry.size] as const]
    let piece = 0
    let into = 0
    for await (const chunk of data) {
      for (let at = 0; at < chunk.length; ) {
        const [offset, length] = pieces[piece] ?? [0, 0]
        const written = writeSync(file, chunk, at, Math.min(chunk.length - at, length - into), offset + into)
        at += written
        into += written
        if (into === length) {
          piece++
          into = 0
        }
      }
      this.bytes += chunk.length
      this.#options.progress?.(this.bytes)
    }
    if (entry.sparse) ftruncateSync(file, entry.sparse.size)
  }

  finish(): void {
    // The deepest first: a folder without its own x bit hides what is in it.
    const depth = (key: string) => key.split('/').length
    for (const [key, { mode, time }] of [...this.#late].sort(([a], [b]) => depth(b) - depth(a))) {
      const parts = key.split('/')
      try {
        const gone = () => {
          throw pathUnwritable({ path: this.say(key), reason: 'it went away meanwhile' })
        }
        const path = pathIn(this.#folder(parts.slice(0, -1), key, gone), parts.at(-1) ?? '')
        if (mode !== undefined) {
          const folder = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
          try {
            futimesSync(folder, time, time)
            fchmodSync(folder, mode)
          } finally {
            closeSync(folder)
          }
        } else lutimesSync(path, time, time)
      } catch (error) {
        throw onDisk(this.say(key), error)
      }
    }
  }
}

/** Unpacks into `folder`, which exists. Rejects with a fault; what was unpacked before stays. */
export const unpack = async (
  stream: ReadableStream<Uint8Array>,
  folder: string,
  options: UnpackOptions = {},
): Promise<{ readonly entries: number; readonly bytes: number }> => {
  const reader = new TarReader(stream)
  try {
    using unpacker = new Unpacker(realpathSync(folder), options)
    for (let entry = await reader.next(); entry; entry = await reader.next()) await unpacker.add(entry, reader.data())
    await reader.drain()
    unpacker.finish()
    return { entries: unpacker.entries, bytes: unpacker.bytes }
  } catch (error) {
    await reader.cancel()
    throw error
  }
}
