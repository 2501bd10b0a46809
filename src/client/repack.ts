import { encodeHeader, padding, TAR_END, type Header } from './tar-header.ts'
import { archiveInvalid, entryEscapes, entryParts, sayName } from './tar-name.ts'
import { TarReader, type Entry } from './tar-reader.ts'

/** Tells where an entry goes, as parts below the folder; undefined leaves it out. */
type Rename = (parts: readonly string[]) => readonly string[] | undefined

/** What a repacked archive keeps, and who is told of what it leaves out. */
export interface RepackOptions {
  /** Takes set-id bits and device nodes along. */
  readonly archive?: boolean
  readonly skipped?: (entry: string, reason: string) => void
  /** Called with what ended the stream: an upload says only that its body ended too early. */
  readonly failed?: (error: unknown) => void
}

/**
 * The symbolic links of an archive, by name. Whoever unpacks it must not be led over one, so no entry may stand below
 * one, and no folder in its place.
 */
class Links {
  readonly #names = new Set<string>()

  /** @throws `entry_escapes` where an entry's way leads over a link */
  check(parts: readonly string[], type: Entry['type']): void {
    if (this.#names.size === 0) return
    for (let length = 1; length <= parts.length; length++) {
      const key = parts.slice(0, length).join('/')
      if (this.#names.has(key) && (length < parts.length || type === 'directory'))
        throw entryEscapes({ entry: sayName(parts.join('/')), reason: `"${sayName(key)}" is a symbolic link` })
    }
  }

  note(name: string, type: Entry['type'], target: string): void {
    // Another name of a link is a link.
    if (type === 'symlink' || (type === 'link' && this.#names.has(target))) this.#names.add(name)
    else this.#names.delete(name)
  }
}

/**
 * Rewrites a tar on its way from one guest to another, its entries under other names. Every header is read and written
 * anew, and checked as if it were unpacked here: what the first guest says reaches the second one only in this form.
 */
export const repack = (
  stream: ReadableStream<Uint8Array>,
  rename: Rename,
  options: RepackOptions = {},
): ReadableStream<Uint8Array> => {
  const pieces = (async function* () {
    const reader = new TarReader(stream)
    const links = new Links()
    try {
      for (let entry = await reader.next(); entry; entry = await reader.next()) {
        const header = renamed(entry, rename, options, links)
        if (!header) continue
        yield encodeHeader(header)
        yield* reader.data()
        if (padding(header.size) > 0) yield Buffer.alloc(padding(header.size))
      }
      await reader.drain()
      yield TAR_END
    } finally {
      await reader.cancel()
    }
  })()
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { done, value } = await pieces.next()
          if (done) controller.close()
          else controller.enqueue(value)
        } catch (error) {
          options.failed?.(error)
          throw error
        }
      },
      async cancel() {
        await pieces.return()
      },
    },
    { highWaterMark: 0 },
  )
}

const renamed = (entry: Entry, rename: Rename, options: RepackOptions, links: Links): Header | undefined => {
  const to = rename(entryParts(entry.name))
  if (to === undefined || to.length === 0) return undefined
  const name = to.join('/')
  const { type } = entry
  if (type === 'unknown') throw archiveInvalid({ reason: `"${sayName(name)}" is of an unknown kind` })
  links.check(to, type)
  const link = type === 'link' ? rename(entryParts(entry.linkname)) : undefined
  if (type === 'link' && (link === undefined || link.length === 0))
    throw archiveInvalid({ reason: `"${sayName(name)}" links to what is not copied` })
  if (link) links.check(link, type)
  if (options.archive !== true && (type === 'character-device' || type === 'block-device')) {
    options.skipped?.(sayName(name), 'it is a device')
    return undefined
  }
  links.note(name, type, link?.join('/') ?? '')
  return {
    name: name + (type === 'directory' ? '/' : ''),
    type,
    mode: entry.mode & (options.archive === true ? 0o7777 : 0o777),
    uid: entry.uid,
    gid: entry.gid,
    size: entry.size,
    mtime: entry.mtime,
    devmajor: entry.devmajor,
    devminor: entry.devminor,
    ...(entry.sparse && { sparse: entry.sparse }),
    ...(link && { linkname: link.join('/') }),
    ...(type === 'symlink' && { linkname: entry.linkname }),
  }
}
