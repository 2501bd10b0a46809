import { chmodSync, chownSync, lstatSync, mkdirSync, readFileSync, rmSync, type Stats } from 'node:fs'
import { connect } from 'node:net'
import { dirname } from 'node:path'
import { randomUUID } from 'node:crypto'
import type { Server, ServerWebSocket } from 'bun'
import { Type } from '@sinclair/typebox'
import type { Host } from '../host.ts'
import { ARGUMENTS_JSON_MAX } from '../contract/guest.ts'
import { fault } from '../lib/fault.ts'
import type { Tokens } from '../system/tokens.ts'
import type { Listener } from './access.ts'
import { api, type Edge } from './api.ts'
import { type ConnectionLimits, Connections, defaultLimits } from './connections.ts'
import { faultOrInternal, problem } from './problem.ts'
import { CLOSE, type SocketData } from './socket/behavior.ts'

export const shuttingDown = fault(
  'shutting_down',
  'unavailable',
  {},
  () => 'Cannot serve this request: the daemon is going down',
)
const listenRefused = fault(
  'listen_refused',
  'invalid',
  { address: Type.String() },
  (d) => `Cannot listen on "${d.address}": it is not the loopback, and this daemon has no TLS`,
  'Put a proxy with TLS in front, or say --listen-insecure',
)
const addressTaken = fault(
  'address_taken',
  'conflict',
  { address: Type.String() },
  (d) => `Cannot listen on "${d.address}": somebody does already`,
)

/** Bytes of one message of a stream. */
const MESSAGE_MAX = 4 * 1_048_576

/** The API on all of its addresses. */
export interface ApiServer {
  readonly addresses: readonly string[]
  /** Tells when the last request came or ended, ms. */
  readonly lastActive: () => number
  readonly open: () => number
  /**
   * Listens anew where the file of a Unix socket was taken away, as cleaners of /tmp do; tells where it did.
   *
   * @throws `address_taken`: somebody else listens there now; an error of the file system, as after a logout
   */
  keep(): Promise<readonly string[]>
  stop(): Promise<void>
}

interface UnixServer {
  readonly path: string
  readonly server: Server<SocketData>
  readonly file: Stats
}

const LOOPBACK = new Set(['127.0.0.1', 'localhost', '[::1]', '::1'])

/** Serves the API on the Unix socket and, where the configuration says so, on TCP. */
export const serveApi = async (
  host: Host,
  tokens: Tokens,
  gone: () => boolean,
  limits: ConnectionLimits = defaultLimits(),
): Promise<ApiServer> => {
  let connections: Connections | undefined
  const app = api(host, tokens)
  let active = 0
  let lastActive = Date.now()
  const enter = () => {
    active++
    lastActive = Date.now()
  }
  const leave = () => {
    active--
    lastActive = Date.now()
  }

  const handler =
    (listener: Listener) =>
    async (request: Request, server: Server<SocketData>): Promise<Response | undefined> => {
      const given = request.headers.get('x-request-id')
      const id = given !== null && /^[A-Za-z0-9._-]{1,64}$/.test(given) ? given : randomUUID()
      enter()
      const edge: Edge = { listener, server, requestId: id }
      let streaming = false
      let over = (): void => undefined
      try {
        if (listener.kind === 'tcp') over = connections?.enter(server.requestIP(request)?.port ?? 0) ?? over
        edge.ended = () => {
          over()
        }
        if (gone()) throw shuttingDown({})
        const answer = await app.fetch(request, edge)
        if (edge.upgraded === true) return undefined
        answer.headers.set('x-request-id', id)
        // Who has shown no token keeps no connection: each is a descriptor, and a kept one lives as long as its client
        // likes.
        if (edge.known !== true) answer.headers.set('connection', 'close')
        if (answer.body !== null && edge.operation?.stream !== undefined) {
          streaming = true
          const left = () => {
            leave()
            over()
          }
          request.signal.addEventListener('abort', left, { once: true })
          return counted(answer, () => {
            request.signal.removeEventListener('abort', left)
            left()
          })
        }
        return answer
      } catch (error) {
        const answer = problem(faultOrInternal(error), id, host.log)
        answer.headers.set('connection', 'close')
        return answer
      } finally {
        if (!streaming) leave()
        if (!streaming && edge.upgraded !== true) over()
      }
    }

  const websocket = {
    idleTimeout: 0,
    sendPings: true,
    maxPayloadLength: ARGUMENTS_JSON_MAX,
    backpressureLimit: 64 * 1_048_576,
    closeOnBackpressureLimit: true,
    perMessageDeflate: false,
    open: (ws: ServerWebSocket<SocketData>) => {
      enter()
      ws.data.behavior = ws.data.begin(ws)
    },
    message: (ws: ServerWebSocket<SocketData>, message: string | Buffer) => {
      // Only a first message, which is text, brings the arguments of a program.
      if (typeof message !== 'string' && message.byteLength > MESSAGE_MAX) ws.close(CLOSE.tooLarge)
      else ws.data.behavior?.message(message)
    },
    drain: (ws: ServerWebSocket<SocketData>) => {
      ws.data.behavior?.drained()
    },
    close: (ws: ServerWebSocket<SocketData>) => {
      leave()
      ws.data.ended?.()
      ws.data.behavior?.close()
    },
  }
  // A create, a wait, a stream: each has its own deadline. `server.timeout(request, 0)` is not heard for a request
  // without a body (Bun 1.4).
  const common = { websocket, idleTimeout: 0, maxRequestBodySize: Number.MAX_SAFE_INTEGER }

  const servers: Server<SocketData>[] = []
  const addresses: string[] = []
  const { socket, lastingSocket, listen } = host.config
  const listenUnix = async (path: string): Promise<UnixServer> => {
    await freeSocket(path)
    const server = Bun.serve({
      ...common,
      unix: path,
      fetch: handler({ kind: 'unix', hosts: new Set() }),
    } as Bun.Serve.Options<SocketData>)
    chmodSync(path, host.config.mode === 'system' ? 0o660 : 0o600)
    const gid = host.config.mode === 'system' ? groupId(host.config.socket_group) : undefined
    if (gid !== undefined) chownSync(path, 0, gid)
    return { path, server, file: lstatSync(path) }
  }
  const unix: UnixServer[] = []
  for (const path of lastingSocket === undefined ? [socket] : [socket, lastingSocket]) {
    unix.push(await listenUnix(path))
    addresses.push(`unix://${path}`)
  }

  if (listen !== '') {
    const at = listen.lastIndexOf(':')
    const hostname = listen.slice(0, at).replace(/^\[|\]$/g, '')
    const port = Number(listen.slice(at + 1))
    if (!LOOPBACK.has(hostname) && !host.config.listen_insecure) throw listenRefused({ address: listen })
    const hosts = new Set([...LOOPBACK, hostname])
    try {
      const server = Bun.serve<SocketData>({ ...common, hostname, port, fetch: handler({ kind: 'tcp', hosts }) })
      servers.push(server)
      connections = new Connections(server.port ?? port, limits)
      addresses.push(`http://${hostname}:${server.port}`)
    } catch (error) {
      throw addressTaken({ address: listen }, error)
    }
  }
  return {
    addresses,
    lastActive: () => lastActive,
    open: () => active,
    keep: async () => {
      const renewed: string[] = []
      for (const [at, { path, server, file }] of unix.entries()) {
        const now = lstatSync(path, { throwIfNoEntry: false })
        if (now?.ino === file.ino && now.dev === file.dev) continue
        // What is under way goes on over the connections that it has; the file goes with the server, so the old one
        // ends first.
        void server.stop(false)
        mkdirSync(dirname(path), { recursive: true, mode: 0o711 })
        unix[at] = await listenUnix(path)
        renewed.push(path)
      }
      return renewed
    },
    stop: async () => {
      connections?.close()
      await Promise.all([...unix.map(({ server }) => server), ...servers].map((server) => server.stop(true)))
      for (const { path } of unix) rmSync(path, { force: true })
    },
  }
}

/** Makes an answer that says when its body has ended or was left. */
const counted = (answer: Response, ended: () => void): Response => {
  const reader = (answer.body as ReadableStream<Uint8Array>).getReader()
  let over = false
  const once = () => {
    if (!over) {
      over = true
      ended()
    }
  }
  const body = new ReadableStream<Uint8Array>({
    pull: async (controller) => {
      try {
        const { done, value } = await reader.read()
        if (done) {
          once()
          controller.close()
        } else controller.enqueue(value)
      } catch (error) {
        once()
        controller.error(error)
      }
    },
    cancel: async (reason) => {
      once()
      await reader.cancel(reason)
    },
  })
  return new Response(body, { status: answer.status, headers: answer.headers })
}

/** Removes a socket that nobody listens on. @throws `address_taken` */
const freeSocket = (path: string): Promise<void> =>
  new Promise((resolve, reject) => {
    const probe = connect(path)
    probe.once('connect', () => {
      probe.destroy()
      reject(addressTaken({ address: path }))
    })
    probe.once('error', () => {
      rmSync(path, { force: true })
      resolve()
    })
  })

const groupId = (name: string): number | undefined => {
  try {
    const line = readFileSync('/etc/group', 'utf8')
      .split('\n')
      .find((entry) => entry.startsWith(`${name}:`))
    return line === undefined ? undefined : Number(line.split(':')[2])
  } catch {
    return undefined
  }
}
