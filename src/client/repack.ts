import { extract, type Header as Read } from 'tar-stream'
import { encodeHeader, padding, TAR_END, type Header } from './tar-header.ts'
import { archiveInvalid, entryParts, feed } from './untar.ts'

const KINDS = new Set<string>(['file', 'link', 'symlink', 'character-device', 'block-device', 'directory', 'fifo'])

/** A tar on its way from one guest to another, its entries under other names. Names are checked as if they were unpacked here. */
export const repack = (
  stream: ReadableStream<Uint8Array>,
  rename: (parts: readonly string[]) => readonly string[] | undefined,
): ReadableStream<Uint8Array> => {
  const pieces = (async function* () {
    const reader = extract()
    const source = stream.getReader()
    reader.on('error', () => undefined) // the iterator throws it
    const feeding = feed(source, reader)
    try {
      for await (const entry of reader) {
        const header = renamed(entry.header, rename)
        if (header) yield encodeHeader(header)
        let size = 0
        for await (const chunk of entry as AsyncIterable<Uint8Array>) {
          size += chunk.length
          if (header) yield chunk
        }
        if (header && padding(size) > 0) yield Buffer.alloc(padding(size))
      }
      await feeding
      yield TAR_END
    } finally {
      reader.destroy()
      await source.cancel().catch(() => undefined)
    }
  })()
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const { done, value } = await pieces.next()
        if (done) controller.close()
        else controller.enqueue(value)
      },
      async cancel() {
        await pieces.return()
      },
    },
    { highWaterMark: 0 },
  )
}

const renamed = (
  read: Read,
  rename: (parts: readonly string[]) => readonly string[] | undefined,
): Header | undefined => {
  const to = rename(entryParts(read.name))
  if (to === undefined || to.length === 0) return undefined
  const type = read.type === 'contiguous-file' ? 'file' : (read.type ?? '')
  if (!KINDS.has(type)) throw archiveInvalid({ reason: `"${to.join('/')}" is of an unknown kind` })
  const pax = read.pax as Readonly<Record<string, string>> | undefined
  const link = type === 'link' ? rename(entryParts(read.linkname ?? '')) : undefined
  if (type === 'link' && (link === undefined || link.length === 0))
    throw archiveInvalid({ reason: `"${to.join('/')}" links to what is not copied` })
  return {
    name: to.join('/') + (type === 'directory' ? '/' : ''),
    type: type as Header['type'],
    mode: read.mode ?? 0o644,
    uid: Number(pax?.['uid'] ?? read.uid ?? 0),
    gid: Number(pax?.['gid'] ?? read.gid ?? 0),
    size: type === 'file' ? (read.size ?? 0) : 0,
    mtime: Math.floor((read.mtime ?? new Date()).getTime() / 1000),
    devmajor: read.devmajor ?? 0,
    devminor: read.devminor ?? 0,
    ...(link && { linkname: link.join('/') }),
    ...(type === 'symlink' && { linkname: read.linkname ?? '' }),
  }
}
