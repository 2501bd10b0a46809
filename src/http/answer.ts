import type { TSchema } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import type { Operation } from '../contract/operation.ts'

/**
 * An operation as the hook of its route: what is checked of a request. Answers are not checked again: they are made from rows by typed
 * code, and a list of 500 would pay for it. `parse: 'none'` leaves the body a stream.
 */
export const hook = <const O extends Operation, P extends 'none' | undefined = undefined>(operation: O, parse?: P) =>
  ({
    ...(operation.params ? { params: operation.params } : {}),
    ...(operation.query ? { query: operation.query, transform: readQuery(operation.query) } : {}),
    ...(operation.body ? { body: operation.body } : {}),
    ...(parse ? { parse } : {}),
  }) as unknown as {
    -readonly [K in keyof O as K extends 'params' | 'query' | 'body' ? K : never]: O[K]
  } & (P extends 'none' ? { parse: 'none' } : object)

/** A query as its schema's types: `?limit=5` is a number, a key that comes twice is a list. Not yet checked. */
export const queryOf = (schema: TSchema, url: URL): unknown => {
  const said: Record<string, unknown> = {}
  for (const key of new Set(url.searchParams.keys())) {
    const values = url.searchParams.getAll(key)
    said[key] = values.length === 1 ? values[0] : values
  }
  return Value.Convert(schema, said)
}

const readQuery =
  (schema: TSchema) =>
  (context: { query: unknown; request: Request }): void => {
    context.query = queryOf(schema, new URL(context.request.url))
  }

export const json = (value: unknown, status = 200, headers: Readonly<Record<string, string>> = {}): Response =>
  new Response(JSON.stringify(value), { status, headers: { 'content-type': 'application/json', ...headers } })

export const noContent = (): Response => new Response(null, { status: 204 })

/** Between two signs of life on a quiet stream. */
const HEARTBEAT_MS = 15_000

export interface SseMessage {
  readonly id?: number
  readonly event?: string
  readonly data: unknown
}

/** Server-sent events from a generator. The client's speed is the generator's: nothing is queued for it. */
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
