import { Elysia } from 'elysia'
import type { Server } from 'bun'
import type { Operation } from '../contract/operation.ts'
import { operations, type OperationId } from '../contract/operations.ts'
import type { Host } from '../host.ts'
import { requestInvalid } from '../lib/errors.ts'
import { Repeats } from '../store/idempotency.ts'
import type { Tokens } from '../system/tokens.ts'
import { check, type Listener } from './access.ts'
import { json } from './answer.ts'
import type { Asked, Handlers, Once, OpenBytes, OpenProcess } from './handler.ts'
import { imageHandlers } from './image.ts'
import { kernelHandlers } from './kernel.ts'
import { networkHandlers } from './network.ts'
import { faultOrInternal, problem, routeNotFound } from './problem.ts'
import { fit, readBody, readQuery } from './read.ts'
import { speakBytes } from './socket/byte-stream.ts'
import { speakProcess } from './socket/process-channel.ts'
import type { SocketData } from './socket/behavior.ts'
import { systemHandlers } from './system.ts'
import { vmHandlers } from './vm.ts'

/** How a request came in, and, once it has been matched, what it is for. */
export interface Edge {
  readonly listener: Listener
  readonly requestId: string
  /** Upgrades to a WebSocket; absent where there is no socket. */
  readonly server?: Server<SocketData>
  operation?: Operation
  /** Whether the caller may use this daemon; absent for one that was refused. */
  known?: boolean
  upgraded?: boolean
  /** Is to be called when a WebSocket that it became has ended. */
  ended?: () => void
}

/** The API as requests to answers; a test needs no socket. */
export interface Api {
  fetch(request: Request, edge: Edge): Promise<Response>
}

type Loose = (asked: Asked<OperationId>) => unknown
interface Matched {
  readonly request: Request
  /** What stood in the path, decoded; null where that could not be done. */
  readonly params: Readonly<Record<string, string | null>>
}

/** Decodes the parameters of a path. @throws `request_invalid` */
const decoded = (params: Matched['params']): Record<string, string | null> => {
  const lost = Object.keys(params).find((name) => params[name] === null)
  if (lost !== undefined) {
    const reason = 'what stands in the path is no UTF-8'
    throw requestInvalid({ field: lost, reason, errors: [{ path: lost, message: reason }] })
  }
  return { ...params }
}

const table = Object.entries(operations as Readonly<Record<string, Operation>>) as [OperationId, Operation][]

/**
 * Puts the table of operations and their handlers behind one router. Each request is let through or refused, read,
 * checked and handed to its verb in `serve`, in that order, by the operation that the router matched and by nothing
 * else.
 */
export const api = (host: Host, tokens: Tokens): Api => {
  const handlers: Handlers = {
    ...vmHandlers(host),
    ...imageHandlers(host),
    ...kernelHandlers(host),
    ...networkHandlers(host),
    ...systemHandlers(host, tokens),
  }
  const edges = new WeakMap<Request, Edge>()
  const edgeOf = (request: Request): Edge => {
    const edge = edges.get(request)
    if (edge === undefined) throw new Error('a request without an edge')
    return edge
  }

  const serve = async (id: OperationId, operation: Operation, { request, params }: Matched): Promise<Response> => {
    const edge = edgeOf(request)
    edge.known = check(edge.listener, request, operation, tokens)
    // The router answers HEAD by GET; only what takes every method does here.
    if (operation.anyMethod !== true && request.method !== operation.method) throw routeNotFound({})
    edge.operation = operation
    const asked: Asked<never> = {
      params: (operation.params ? fit(operation.params, decoded(params)) : params) as never,
      query: (operation.query ? readQuery(operation.query, request.url) : undefined) as never,
      body: (operation.stream === undefined ? await readBody(operation, request) : undefined) as never,
      request,
      signal: request.signal,
      ...pathOf(operation, request.url),
    }
    if (operation.stream === 'websocket') return upgrade(edge, operation, handlers[id] as Loose, asked)
    const answer = operation.idempotent === true ? await once(id, asked) : await (handlers[id] as Loose)(asked)
    if (answer instanceof Response) return answer
    const [status = '200'] = Object.keys(operation.response)
    return status === '204' ? new Response(null, { status: 204 }) : json(answer, Number(status))
  }

  const repeats = new Repeats(host.store)
  const once = async (operation: OperationId, asked: Asked<never>): Promise<unknown> => {
    const { first, again } = handlers[operation] as Once<never>
    const key = asked.request.headers.get('idempotency-key')
    if (key === null) return await first(asked, undefined)
    const request = { key, operation, asked: JSON.stringify([asked.params, asked.body]) }
    return await repeats.once<unknown>(request, (claim) => first(asked, claim), again)
  }

  const app = new Elysia({ normalize: false, strictPath: true, handler: { standardHostname: false } })
  app.onError(({ error, code, request }) => {
    const edge = edgeOf(request)
    return problem(code === 'NOT_FOUND' ? unmatched(edge, request) : faultOrInternal(error), edge.requestId, host.log)
  })
  /** Refuses what is no operation like one that only reads, so that a stranger does not learn the routes. */
  const unmatched = (edge: Edge, request: Request) => {
    try {
      edge.known = check(edge.listener, request, undefined, tokens)
      return routeNotFound({})
    } catch (error) {
      return faultOrInternal(error)
    }
  }
  for (const [id, operation] of table) {
    const handle = ({ request, params }: Matched) => serve(id, operation, { request, params })
    if (operation.anyMethod === true) app.all(operation.path, handle, { parse: 'none' })
    else app.route(operation.method, operation.path, handle, { parse: 'none' })
  }
  return {
    fetch: async (request, edge) => {
      // RFC 9112, section 3.2: a request target has no fragment. What one is taken for differs from reader to reader.
      if (request.url.includes('#')) throw requestInvalid({ reason: 'its target has a "#"' })
      edges.set(request, edge)
      return await app.fetch(request)
    },
  }
}

/** Splits the path of a request where its operation's path ends in `*`: undecoded, without the slash between. */
export const pathOf = (operation: Operation, url: string): { readonly base: string; readonly rest: string } => {
  const { pathname } = new URL(url)
  if (!operation.path.endsWith('/*')) return { base: pathname, rest: '' }
  const segments = pathname.split('/')
  const fixed = operation.path.split('/').length - 1
  return { base: segments.slice(0, fixed).join('/'), rest: segments.slice(fixed).join('/') }
}

const upgrade = (edge: Edge, operation: Operation, handler: Loose, asked: Asked<never>): Response => {
  const { request } = asked
  // First what is not there is said: a client whose upgrade was refused sees no answer, and asks again without one to
  // learn why.
  const open = handler(asked)
  if (request.headers.get('upgrade')?.toLowerCase() !== 'websocket')
    throw requestInvalid({ reason: 'it is for a WebSocket, and does not ask for `Upgrade: websocket`' })
  const { socket } = operation
  const begin: SocketData['begin'] = (ws) =>
    socket?.kind === 'process'
      ? speakProcess(ws, socket.start, open as OpenProcess<unknown>)
      : speakBytes(ws, open as OpenBytes)
  if (
    edge.server?.upgrade(request, {
      data: { begin, ended: edge.ended },
      headers: { 'x-request-id': edge.requestId },
    }) !== true
  )
    throw requestInvalid({ reason: 'it cannot be upgraded to a WebSocket' })
  edge.upgraded = true
  return new Response(null)
}
