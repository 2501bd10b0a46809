/**
 * Unpacks a tar stream into a folder of this host. The stream comes from a guest, so it is hostile.
 *
 * INVARIANTS
 * - Nothing outside of the folder is made, changed or linked to: no absolute name, no `..`, and no name whose way leads over a symbolic
 *   link, whoever made that link, is ever opened.
 * - What is in the way of a file is removed and never written through; a folder in the way is a fault.
 * - Set-id bits and device nodes do not arrive here; files belong to whoever unpacks.
 */
import {
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  futimesSync,
  linkSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  openSync,
  realpathSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeSync,
  type Stats,
} from 'node:fs'
import { join } from 'node:path'
import { Type } from '@sinclair/typebox'
import { extract, type Extract, type Header } from 'tar-stream'
import { fault, Fault } from '../lib/fault.ts'

export const archiveInvalid = fault(
  'archive_invalid',
  'invalid',
  { reason: Type.String() },
  (d) => `Cannot unpack the archive: ${d.reason}`,
)
export const entryEscapes = fault(
  'entry_escapes',
  'invalid',
  { entry: Type.String(), reason: Type.String() },
  (d) => `Cannot unpack "${d.entry}": ${d.reason}`,
  'The archive tries to write outside of its folder; what came before it is there',
)
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

const PATH_MAX = 4096
const DEPTH_MAX = 256

export interface UnpackOptions {
  /** Where an entry goes, as parts below the folder; undefined leaves it out. */
  readonly rename?: (parts: readonly string[]) => readonly string[] | undefined
  readonly skipped?: (entry: string, reason: string) => void
  readonly progress?: (bytes: number) => void
}

/** The parts of an entry's name, checked: relative, downwards, of a bounded length. */
export const entryParts = (name: string): string[] => {
  const escapes = (reason: string) => entryEscapes({ entry: name.slice(0, 200), reason })
  if (name.includes('\0')) throw archiveInvalid({ reason: 'a name holds a NUL' })
  if (Buffer.byteLength(name) > PATH_MAX) throw archiveInvalid({ reason: `a name is longer than ${PATH_MAX} bytes` })
  if (name.startsWith('/')) throw escapes('its name is absolute')
  const parts = name.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw escapes('its name leads upwards')
  if (parts.length > DEPTH_MAX) throw archiveInvalid({ reason: `a name is deeper than ${DEPTH_MAX} folders` })
  return parts
}

const onDisk = (path: string, error: unknown): Fault => {
  if (error instanceof Fault) return error
  const code = (error as { code?: unknown }).code
  if (code === 'ENOSPC' || code === 'EDQUOT') return diskFull({ path }, error)
  const reason =
    {
      EACCES: 'this user may not',
      EPERM: 'this user may not',
      EROFS: 'the file system is read-only',
      ENAMETOOLONG: 'its name is too long',
      EEXIST: 'something stands there',
    }[String(code)] ?? (error instanceof Error ? error.message : String(error))
  return pathUnwritable({ path, reason }, error)
}

/** Seconds, with a fraction where the pax record has one; what is no time is now. */
const timeOf = (header: Header): Date => {
  const seconds = Number((header.pax as Readonly<Record<string, string>> | undefined)?.['mtime'] ?? Number.NaN)
  const time = Number.isFinite(seconds) ? new Date(seconds * 1000) : (header.mtime ?? new Date())
  return Number.isNaN(time.getTime()) ? new Date() : time
}

/** What stands at a path; undefined where nothing does, or where it cannot be seen: what is tried next says why. */
const look = (path: string): Stats | undefined => {
  try {
    return lstatSync(path, { throwIfNoEntry: false })
  } catch {
    return undefined
  }
}

/** The calls are synchronous: on a tree of small files a promise a call costs five times the call. */
class Unpacker {
  readonly #root: string
  readonly #options: UnpackOptions
  /** Folders that are known to be folders: nothing here ever turns one into something else. */
  readonly #folders = new Set<string>([''])
  /** Modes and times of folders, given at the end: what is put into a folder changes its time, and may need its write bit. */
  readonly #late = new Map<string, { readonly mode: number; readonly time: Date }>()
  entries = 0
  bytes = 0

  constructor(root: string, options: UnpackOptions) {
    this.#root = root
    this.#options = options
  }

  /** Makes sure that every folder on the way is a folder, and makes those that are missing. */
  #way(parts: readonly string[], entry: string, make: boolean): void {
    for (let length = 1; length <= parts.length; length++) {
      const key = parts.slice(0, length).join('/')
      if (this.#folders.has(key)) continue
      const path = join(this.#root, key)
      const stat = look(path)
      if (stat?.isSymbolicLink())
        throw entryEscapes({ entry: entry.slice(0, 200), reason: `"${key}" is a symbolic link` })
      if (stat && !stat.isDirectory())
        throw entryEscapes({ entry: entry.slice(0, 200), reason: `"${key}" is no folder` })
      if (!stat) {
        if (!make) throw archiveInvalid({ reason: `"${entry.slice(0, 200)}" links to what is not there` })
        mkdirSync(path)
      }
      this.#folders.add(key)
    }
  }

  #clear(path: string): void {
    const stat = look(path)
    if (stat?.isDirectory()) throw pathUnwritable({ path, reason: 'a folder stands there' })
    if (stat) unlinkSync(path)
  }

  async add(header: Header, body: AsyncIterable<Uint8Array>): Promise<void> {
    const parts = entryParts(header.name)
    const to = this.#options.rename ? this.#options.rename(parts) : parts
    if (to === undefined || to.length === 0) return
    const key = to.join('/')
    const path = join(this.#root, key)
    const time = timeOf(header)
    const mode = (header.mode ?? 0o644) & 0o777
    this.#way(to.slice(0, -1), header.name, true)
    switch (header.type) {
      case 'directory': {
        this.#way(to, header.name, true)
        chmodSync(path, mode | 0o700)
        this.#late.set(key, { mode, time })
        break
      }
      case 'file':
      case 'contiguous-file': {
        this.#clear(path)
        const file = openSync(
          path,
          constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
          0o600,
        )
        try {
          for await (const chunk of body) {
            for (let at = 0; at < chunk.length; ) at += writeSync(file, chunk, at)
            this.bytes += chunk.length
            this.#options.progress?.(this.bytes)
          }
          fchmodSync(file, mode)
          futimesSync(file, time, time)
        } finally {
          closeSync(file)
        }
        break
      }
      case 'symlink': {
        const target = header.linkname ?? ''
        if (target === '' || target.includes('\0') || Buffer.byteLength(target) > PATH_MAX)
          throw archiveInvalid({ reason: `the link "${key}" leads nowhere` })
        this.#clear(path)
        symlinkSync(target, path)
        lutimesSync(path, time, time)
        break
      }
      case 'link': {
        const from = entryParts(header.linkname ?? '')
        const target = this.#options.rename ? this.#options.rename(from) : from
        if (target === undefined || target.length === 0)
          throw archiveInvalid({ reason: `"${key}" links to what is not unpacked` })
        this.#way(target.slice(0, -1), header.name, false)
        const source = join(this.#root, ...target)
        const stat = look(source)
        if (!stat) throw archiveInvalid({ reason: `"${key}" links to what is not there` })
        if (!stat.isFile())
          throw entryEscapes({ entry: header.name.slice(0, 200), reason: 'it links to what is no file' })
        if (source === path) break
        this.#clear(path)
        linkSync(source, path)
        break
      }
      case 'fifo':
      case 'character-device':
      case 'block-device':
        this.#options.skipped?.(key, header.type === 'fifo' ? 'it is a fifo' : 'it is a device')
        return
      default:
        throw archiveInvalid({ reason: `"${key}" is of an unknown kind` })
    }
    this.entries++
  }

  finish(): void {
    // The deepest first: a folder without its own x bit hides what is in it.
    const depth = (key: string) => key.split('/').length
    for (const [key, { mode, time }] of [...this.#late].sort(([a], [b]) => depth(b) - depth(a))) {
      const path = join(this.#root, key)
      utimesSync(path, time, time)
      chmodSync(path, mode)
    }
  }

  path(header: Header): string {
    return join(this.#root, header.name)
  }
}

/** What a reader of a stream is: two libraries of types call it two things. */
interface Source {
  read(): Promise<{ readonly done: boolean; readonly value?: Uint8Array | undefined }>
  cancel(): Promise<void>
}

/** Feeds a stream into the reader at the reader's pace; a failure of the stream is the reader's. */
export const feed = async (from: Source, into: Extract): Promise<void> => {
  let ready = Promise.withResolvers<void>()
  const wake = () => {
    ready.resolve()
    ready = Promise.withResolvers()
  }
  into.on('drain', wake).on('close', wake)
  try {
    for (;;) {
      const { done, value } = await from.read()
      if (into.destroyed) return
      if (done) {
        into.end(undefined)
        return
      }
      const room = ready.promise
      if (value && !into.write(value) && !into.destroyed) await room
    }
  } catch (error) {
    into.destroy(error instanceof Error ? error : new Error(String(error)))
  }
}

/** Unpacks into `folder`, which exists. Rejects with a fault; what was unpacked before stays. */
export const unpack = async (
  stream: ReadableStream<Uint8Array>,
  folder: string,
  options: UnpackOptions = {},
): Promise<{ readonly entries: number; readonly bytes: number }> => {
  const unpacker = new Unpacker(realpathSync(folder), options)
  const reader = extract()
  const source = stream.getReader()
  reader.on('error', () => undefined) // the iterator throws it
  const feeding = feed(source, reader)
  try {
    for await (const entry of reader) {
      try {
        await unpacker.add(entry.header, entry as AsyncIterable<Uint8Array>)
      } catch (error) {
        // An error while the body is read is the stream's own; the rest is about the disk.
        if (reader.destroyed) throw error
        throw onDisk(unpacker.path(entry.header), error)
      }
      entry.resume() // what nobody read of it
    }
    await feeding
    unpacker.finish()
  } catch (error) {
    reader.destroy()
    await source.cancel().catch(() => undefined)
    if (error instanceof Fault) throw error
    throw archiveInvalid({ reason: error instanceof Error ? error.message.replace(/\.$/, '') : String(error) }, error)
  }
  return { entries: unpacker.entries, bytes: unpacker.bytes }
}
