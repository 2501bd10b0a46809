import { fstatSync, read } from 'node:fs'
import { Type } from '@sinclair/typebox'
import { fault } from '../lib/fault.ts'

export const stdinUnreadable = fault(
  'stdin_unreadable',
  'invalid',
  { reason: Type.String() },
  (d) => `Cannot read stdin: ${d.reason}`,
)

const REASONS: Readonly<Record<string, string>> = {
  EISDIR: 'it is a folder',
  EBADF: 'it is not open for reading',
  EIO: 'the device or terminal behind it fails',
}

/** Our standard input as a stream that is read when asked. */
export interface Stdin {
  /** Takes what comes next; undefined at the end. Nothing is read ahead. @throws `stdin_unreadable` */
  read(): Promise<Uint8Array | undefined>
  cancel(): Promise<void>
}

const FILE_CHUNK = 256 * 1024

/**
 * Reads the next piece of a file from where its descriptor stands, to its end whatever its size is said to be (as of
 * those in /proc).
 */
const readFile = async (): Promise<Uint8Array | undefined> => {
  const buffer = Buffer.allocUnsafe(FILE_CHUNK)
  const count = await new Promise<number>((resolve, reject) => {
    read(0, buffer, 0, FILE_CHUNK, null, (error, bytes) => {
      if (error) reject(error)
      else resolve(bytes)
    })
  })
  return count === 0 ? undefined : buffer.subarray(0, count)
}

/** Opens what stdin says. An error of stdin is a fault of whoever gave it. */
export const openStdin = (): Stdin => {
  const open = () => Bun.stdin.stream().getReader()
  let reader: ReturnType<typeof open> | undefined
  return {
    async read() {
      try {
        const stat = fstatSync(0)
        if (stat.isDirectory()) throw Object.assign(new Error('it is a folder'), { code: 'EISDIR' })
        if (stat.isFile()) return await readFile()
        const from = (reader ??= open())
        return (await from.read()).value
      } catch (error) {
        const { code } = error as { code?: unknown }
        const reason = (typeof code === 'string' ? REASONS[code] : undefined) ?? (error as Error).message
        throw stdinUnreadable({ reason }, error)
      }
    },
    cancel: async () => reader?.cancel(),
  }
}

/**
 * Streams what stdin says. `failed` hears of an error of stdin, `stdin_unreadable`, where the reader of the stream
 * would say it in other words.
 */
export const stdin = (failed: (error: unknown) => void = () => undefined): ReadableStream<Uint8Array> => {
  const from = openStdin()
  return new ReadableStream<Uint8Array>(
    {
      async pull(out) {
        try {
          const bytes = await from.read()
          if (bytes === undefined) out.close()
          else out.enqueue(bytes)
        } catch (error) {
          failed(error)
          out.error(error)
        }
      },
      cancel: () => from.cancel(),
    },
    { highWaterMark: 0 },
  )
}
