import { embedded } from './embedded.ts'

/** What a wing command said when it failed; `code` is stable, `chain` goes from the outermost cause inwards. */
export class WingError extends Error {
  override name = 'WingError'
  readonly code: string
  readonly chain: readonly string[]
  /** Names the flag that raises the limit that was met. */
  readonly flag: string | undefined

  constructor(code: string, message: string, chain: readonly string[] = [], flag?: string) {
    super(message)
    this.code = code
    this.chain = chain
    this.flag = flag
  }
}

/**
 * Finds the error in what a wing command wrote: its one JSON line, which is the last. Undefined where there is none.
 */
export const wingErrorOf = (text: string): WingError | undefined => {
  const line = text.trimEnd().split('\n').at(-1) ?? ''
  let said: unknown
  try {
    said = JSON.parse(line)
  } catch {
    return undefined
  }
  if (typeof said !== 'object' || said === null || !('code' in said) || typeof said.code !== 'string') return undefined
  const message = 'message' in said && typeof said.message === 'string' ? said.message : said.code
  const chain =
    'chain' in said && Array.isArray(said.chain) ? said.chain.filter((cause) => typeof cause === 'string') : []
  const flag = 'flag' in said && typeof said.flag === 'string' ? said.flag : undefined
  return new WingError(said.code, message, chain, flag)
}

/** Makes what Bun.spawn starts wing with: its argv and the rest that is the same for every command. */
export const wingCommand = (args: readonly string[]) => ({
  cmd: [`/proc/self/fd/${embedded('wing').fd}`, ...args],
  argv0: 'wing',
  env: {},
})

/** What a run of `wing` is given. */
export interface WingOptions {
  /**
   * Streamed to its stdin with back-pressure. Where the stream breaks, wing is killed: half an archive is not an
   * archive.
   */
  readonly stdin?: ReadableStream<Uint8Array> | Uint8Array | undefined
  /** `[ours, its]`: descriptors that it gets beside 0, 1 and 2. Ours stay open. */
  readonly fds?: readonly (readonly [number, number])[] | undefined
  /** Kills it. */
  readonly signal?: AbortSignal | undefined
}

/** Bytes of answer that are read; a kernel's list of modules is below 1 MiB. */
const OUTPUT_BYTES_MAX = 16 * 2 ** 20

/**
 * Runs one wing command (native/README.md) to its end.
 *
 * @returns the JSON of its stdout; undefined where it says nothing
 * @throws WingError: what it said, or `wing_died` where it could not say anything; the error of `stdin`; the signal's
 * reason
 */
export const wing = async (
  args: readonly string[],
  { stdin, fds = [], signal }: WingOptions = {},
): Promise<unknown> => {
  signal?.throwIfAborted()
  const extra: (number | 'ignore')[] = []
  for (const [ours, its] of fds) {
    if (its < 3) throw new RangeError(`wing: descriptor ${its} is not beside 0, 1 and 2`)
    while (extra.length <= its - 3) extra.push('ignore')
    extra[its - 3] = ours
  }
  const process = Bun.spawn({
    ...wingCommand(args),
    stdio: [stdin === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe', ...extra],
  })
  const kill = () => {
    process.kill('SIGKILL')
  }
  signal?.addEventListener('abort', kill, { once: true })
  try {
    const fed =
      stdin === undefined || !process.stdin
        ? undefined
        : feed(process.stdin, stdin, process.exited).catch((error: unknown) => {
            kill()
            return { error }
          })
    const [stdout, stderr, broken] = await Promise.all([
      collect(process.stdout, kill),
      collect(process.stderr, kill),
      fed,
      process.exited,
    ])
    signal?.throwIfAborted()
    if (broken) throw broken.error
    if (process.exitCode !== 0) {
      throw (
        wingErrorOf(stderr) ??
        new WingError(
          'wing_died',
          `wing ${args.join(' ')} ended with ${process.signalCode ?? process.exitCode}`,
          stderr === '' ? [] : [stderr.slice(-2000)],
        )
      )
    }
    return stdout.trim() === '' ? undefined : JSON.parse(stdout)
  } finally {
    signal?.removeEventListener('abort', kill)
  }
}

/**
 * Writes a stream into a pipe, a chunk in memory and not the archive: write() waits while the pipe is full. A reader
 * that goes away early is no error here, why it did is in its own answer.
 */
const feed = async (
  pipe: Bun.FileSink,
  source: ReadableStream<Uint8Array> | Uint8Array,
  exited: Promise<unknown>,
): Promise<undefined> => {
  const reader = (
    source instanceof Uint8Array ? new Blob([source as Uint8Array<ArrayBuffer>]).stream() : source
  ).getReader()
  const gone = () => reader.cancel().catch(() => undefined)
  void exited.then(gone) // a stream that has stopped in the middle would hold us for ever
  for (;;) {
    const { value, done } = await reader.read()
    try {
      await (done ? pipe.end() : pipe.write(value))
    } catch {
      await gone()
      return undefined
    }
    if (done) return undefined
  }
}

const collect = async (stream: ReadableStream<Uint8Array>, tooMuch: () => void): Promise<string> => {
  const parts: Uint8Array[] = []
  let bytes = 0
  for await (const part of stream) {
    bytes += part.length
    if (bytes > OUTPUT_BYTES_MAX) {
      tooMuch()
      throw new WingError('wing_died', `wing said more than ${OUTPUT_BYTES_MAX} bytes`)
    }
    parts.push(part)
  }
  return Buffer.concat(parts).toString()
}
