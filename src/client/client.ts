import ky from 'ky'
import type { Input, OperationId, Output, SocketOf, Start, Streaming } from '../contract/operations.ts'
import type { Exec } from './exec-stream.ts'
import { sayEndpoint, type Endpoint } from './endpoint.ts'
import { answerInvalid, faultOfNetwork, faultOfResponse, faultOfText, isReset } from './errors.ts'
import type { Raw } from './raw.ts'
import { routeOf, targetOf, type Parts } from './request.ts'
import type { ServerEvent } from './sse.ts'

export type UploadId = Streaming<'upload'>
export type DownloadId = Streaming<'download'>
export type SseId = Streaming<'sse'>
/** Verbs whose request and answer are JSON. */
export type CallId = Exclude<OperationId, Streaming<'upload' | 'download' | 'sse' | 'websocket'>>

export type Payload = string | Blob | ReadableStream<Uint8Array>

/** Settings of one call. */
export interface CallOptions {
  readonly signal?: AbortSignal | undefined
  /** Sent with a POST, so that the second try of a cut request finds the first one's work. */
  readonly idempotencyKey?: string
}

/** Settings of one stream of events. */
export interface SseOptions {
  readonly signal?: AbortSignal
  readonly lastEventId?: string
  /** Connect again also after a clean end: for streams that have none, like events. */
  readonly endless?: boolean
}

/**
 * The API of one daemon, typed by the table of operations. Every failure is a `Fault`; an aborted signal throws its
 * reason.
 */
export interface Client {
  readonly endpoint: Endpoint
  call<Id extends CallId>(id: Id, input: Input<Id>, options?: CallOptions): Promise<Output<Id>>
  upload<Id extends UploadId>(
    id: Id,
    input: Input<Id>,
    body: ReadableStream<Uint8Array>,
    options?: CallOptions,
  ): Promise<Output<Id>>
  download<Id extends DownloadId>(id: Id, input: Input<Id>, options?: CallOptions): Promise<ReadableStream<Uint8Array>>
  sse<Id extends SseId>(id: Id, input: Input<Id>, options?: SseOptions): AsyncIterable<ServerEvent>
  /** Speaks with a process over a WebSocket. */
  process<Id extends SocketOf<'process'>>(id: Id, input: Input<Id>, start: Start<Id>): Promise<Exec>
  /** Bytes both ways over a WebSocket. */
  raw<Id extends SocketOf<'bytes'>>(id: Id, input: Input<Id>): Promise<Raw>
  /** Any request with this client's credentials; a failed answer is returned, not thrown. */
  request(
    method: string,
    target: string,
    options?: CallOptions & { readonly body?: Payload; readonly headers?: Record<string, string> },
  ): Promise<Response>
}

/**
 * Makes the client of one daemon; nothing is sent before the first call. What only streams need is loaded by the first
 * stream: most commands are one request, and half of their time is loading.
 */
export const connect = (endpoint: Endpoint): Client => {
  const origin = endpoint.kind === 'unix' ? 'http://aerie' : endpoint.origin
  const said = sayEndpoint(endpoint)
  // Bun gives up on a silent answer after 5 minutes; a boot or a stream of events may be silent for longer.
  const extra: BunFetchRequestInit & { readonly unix?: string; readonly timeout: boolean } =
    endpoint.kind === 'unix' ? { unix: endpoint.path, timeout: false } : { timeout: false }
  const headers: Record<string, string> =
    endpoint.kind === 'http' && endpoint.token !== undefined ? { authorization: `Bearer ${endpoint.token}` } : {}
  const http = ky.create({
    fetch: (input, init) => fetch(input as Request, { ...init, ...extra } as BunFetchRequestInit),
    headers,
    retry: 0,
    timeout: false,
    throwHttpErrors: false,
    redirect: 'manual',
  })

  const send = async (
    method: string,
    target: string,
    options: CallOptions & {
      readonly body?: Payload | undefined
      readonly headers?: Record<string, string>
    },
  ): Promise<Response> => {
    try {
      return await http(origin + target, {
        method,
        ...(options.signal && { signal: options.signal }),
        ...(options.headers && { headers: options.headers }),
        ...(options.body !== undefined && { body: options.body }),
        ...(options.body instanceof ReadableStream && { duplex: 'half' }),
      })
    } catch (error) {
      if (options.signal?.aborted) throw options.signal.reason
      throw faultOfNetwork(error, said)
    }
  }
  const ok = async (response: Response): Promise<Response> => {
    if (response.ok) return response
    throw await faultOfResponse(response, said)
  }
  const json = async (response: Response, signal: AbortSignal | undefined): Promise<unknown> => {
    let text: string
    try {
      text = await response.text()
    } catch (error) {
      if (signal?.aborted) throw signal.reason
      throw faultOfNetwork(error, said)
    }
    if (text === '') return null
    try {
      return JSON.parse(text)
    } catch (error) {
      throw answerInvalid({ endpoint: said, reason: 'it is not JSON' }, error)
    }
  }

  return {
    endpoint,
    async call(id, input, options = {}) {
      const parts: Parts = input
      const { method, idempotent } = routeOf(id)
      const target = targetOf(id, parts)
      const key = options.idempotencyKey ?? (idempotent === true ? crypto.randomUUID() : undefined)
      const request = {
        signal: options.signal,
        headers: {
          ...(parts.body !== undefined && { 'content-type': 'application/json' }),
          ...(key !== undefined && { 'idempotency-key': key }),
        },
        ...(parts.body !== undefined && { body: JSON.stringify(parts.body) }),
      }
      const once = async () => (await json(await ok(await send(method, target, request)), options.signal)) as never
      try {
        return await once()
      } catch (error) {
        // A kept-alive connection may be closed just as it is used again, and a daemon may be restarted under a create.
        if (!isReset(error) || options.signal?.aborted || (method !== 'GET' && key === undefined)) throw error
        return once()
      }
    },
    async upload(id, input, body, options = {}) {
      const response = await send(routeOf(id).method, targetOf(id, input as Parts), {
        ...options,
        body,
        headers: { 'content-type': 'application/x-tar' },
      })
      return (await json(await ok(response), options.signal)) as never
    },
    async download(id, input, options = {}) {
      const { FRAMED, unframe } = await import('../contract/framed.ts')
      const response = await ok(
        await send('GET', targetOf(id, input as Parts), { ...options, headers: { accept: FRAMED } }),
      )
      const body = response.body ?? new Blob([]).stream()
      if (response.headers.get('content-type') !== FRAMED) return body
      return unframe(
        body,
        (text) => faultOfText(text) ?? answerInvalid({ endpoint: said, reason: 'it ended with no reason' }),
        (error) => (options.signal?.aborted ? (options.signal.reason as Error) : faultOfNetwork(error, said)),
      )
    },
    async *sse(id, input, options = {}) {
      const { follow } = await import('./sse.ts')
      yield* follow(
        async (lastEventId) =>
          ok(
            await send('GET', targetOf(id, input as Parts), {
              signal: options.signal,
              headers: {
                accept: 'text/event-stream',
                ...(lastEventId !== undefined && { 'last-event-id': lastEventId }),
              },
            }),
          ),
        options,
        said,
      )
    },
    process: async (id, input, start) =>
      (await import('./exec-stream.ts')).openExec(endpoint, targetOf(id, input as Parts), start),
    raw: async (id, input) => (await import('./raw.ts')).openRaw(endpoint, targetOf(id, input as Parts)),
    request: (method, target, options = {}) => send(method, target, options),
  }
}
