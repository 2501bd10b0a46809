import { FRAMED, frame } from '../contract/framed.ts'
import type { Log } from '../lib/log.ts'
import { faultOrInternal, problem } from './problem.ts'

/** Gives the body of a request that is an upload. */
export const bodyOf = (request: Request): ReadableStream<Uint8Array> => request.body ?? new Blob([]).stream()

/**
 * Answers with a tar stream, with the name and the kind of what is in it. Who accepts frames is told why it ends where
 * it does so too early.
 */
export const tar = (
  out: { readonly stream: ReadableStream<Uint8Array>; readonly name: string; readonly isDir: boolean },
  request: Request,
  log: Log,
): Response => {
  const framed = request.headers.get('accept') === FRAMED
  const say = (error: unknown) =>
    problem(faultOrInternal(error), request.headers.get('x-request-id') ?? '-', log).text()
  return new Response(framed ? frame(out.stream, say) : out.stream, {
    headers: {
      'content-type': framed ? FRAMED : 'application/x-tar',
      'x-aerie-name': encodeURIComponent(out.name),
      'x-aerie-is-dir': String(out.isDir),
    },
  })
}

/** Answers with a value as JSON. */
export const json = (value: unknown, status = 200, headers: Readonly<Record<string, string>> = {}): Response =>
  new Response(JSON.stringify(value), { status, headers: { 'content-type': 'application/json', ...headers } })

/** The time between two comments on a stream that is quiet, ms: proxies close one that says nothing. */
const HEARTBEAT_MS = 15_000

/** One server-sent event before it is written. */
export interface SseMessage {
  readonly id?: number
  readonly event?: string
  readonly data: unknown
}

/**
 * Answers with server-sent events from a generator. The client's speed is the generator's: nothing is queued for it.
 */
export const sse = <T>(items: AsyncGenerator<T>, client: AbortSignal, say: (item: T) => SseMessage): Response => {
  const encoder = new TextEncoder()
  let waiting: Promise<IteratorResult<T>> | undefined
  const stream = new ReadableStream<Uint8Array>({
    start: (controller) => {
      controller.enqueue(encoder.encode(': aerie\n\n'))
    }, // headers and a first byte at once
    pull: async (controller) => {
      waiting ??= items.next()
      const beat = Promise.withResolvers<'beat'>()
      const timer = setTimeout(() => {
        beat.resolve('beat')
      }, HEARTBEAT_MS)
      try {
        const next = await Promise.race([waiting, beat.promise])
        if (next === 'beat') {
          controller.enqueue(encoder.encode(': beat\n\n'))
          return
        }
        waiting = undefined
        if (next.done === true) {
          controller.close()
          return
        }
        const { id, event, data } = say(next.value)
        controller.enqueue(
          encoder.encode(
            `${id === undefined ? '' : `id: ${id}\n`}${event === undefined ? '' : `event: ${event}\n`}data: ${JSON.stringify(data)}\n\n`,
          ),
        )
      } catch (error) {
        controller.error(error)
      } finally {
        clearTimeout(timer)
      }
    },
    cancel: async () => {
      await items.return(undefined)
    },
  })
  client.addEventListener(
    'abort',
    () => {
      void items.return(undefined)
    },
    { once: true },
  )
  return new Response(stream, {
    headers: { 'content-type': 'text/event-stream', 'cache-control': 'no-store', 'x-accel-buffering': 'no' },
  })
}
