import { deferred } from '../lib/promise.ts'
import { sayEndpoint, type Endpoint } from './endpoint.ts'
import { connectionLost, faultOfNetwork, faultOfProblem, faultOfResponse } from './errors.ts'

/** What a peer may have sent and nobody has read yet before the socket is told to wait, and when it goes on. */
const UNREAD_HIGH = 1024 * 1024
const UNREAD_LOW = 256 * 1024
/**
 * Bytes after which a ping goes out; with at most so many pings unanswered, what is sent and not read stays below 1
 * MiB.
 */
const PING_EVERY = 128 * 1024
const PINGS_MAX = 6

type Message = string | Uint8Array

/**
 * One WebSocket as two bounded directions.
 *
 * INVARIANTS
 * - Every message that arrived before the end is read before the end is seen.
 * - A reader that is slow stops the peer (the socket is paused), a peer that is slow stops `send`.
 */
export interface Socket {
  /** The messages in their order. Returns at the peer's close, throws where the connection was cut. */
  messages(): AsyncGenerator<Message, void>
  /** Resolves when the socket may be given more. */
  send(message: Message): Promise<void>
  close(): void
}

const urlOf = (endpoint: Endpoint, target: string): string =>
  endpoint.kind === 'unix' ? `ws+unix://${endpoint.path}:${target}` : endpoint.origin.replace(/^http/, 'ws') + target

/**
 * Why the upgrade was refused: a WebSocket does not show the answer, so the same address is asked without the upgrade.
 */
const refusal = async (endpoint: Endpoint, target: string, said: string): Promise<Error> => {
  const headers =
    endpoint.kind === 'http' && endpoint.token !== undefined ? { authorization: `Bearer ${endpoint.token}` } : undefined
  const url = (endpoint.kind === 'unix' ? 'http://aerie' : endpoint.origin) + target
  try {
    const response = await fetch(url, {
      ...(headers && { headers }),
      ...(endpoint.kind === 'unix' && { unix: endpoint.path }),
      redirect: 'manual',
      signal: AbortSignal.timeout(5000),
    })
    if (!response.ok) return await faultOfResponse(response, said)
    await response.body?.cancel()
    return connectionLost({ endpoint: said, reason: 'it refused the WebSocket' })
  } catch (error) {
    return faultOfNetwork(error, said)
  }
}

/** The fault in the reason of a close: JSON, which a close frame may have cut short. */
const faultOfClose = (reason: string): Error | undefined => {
  const code = /"code":"([a-z_]+)"/.exec(reason)?.[1]
  if (code === undefined) return undefined
  const message = /"message":("(?:[^"\\]|\\.)*)/.exec(reason)?.[1]
  try {
    return faultOfProblem({ code, title: JSON.parse(`${message ?? '"'}"`) as unknown }, 'unavailable')
  } catch {
    return faultOfProblem({ code, title: message?.slice(1) }, 'unavailable') // cut within an escape
  }
}

/** Opens a WebSocket to a daemon; resolves when it is open. @throws the daemon's fault, or one of the network */
export const openSocket = async (endpoint: Endpoint, target: string): Promise<Socket> => {
  const said = sayEndpoint(endpoint)
  const headers =
    endpoint.kind === 'http' && endpoint.token !== undefined ? { authorization: `Bearer ${endpoint.token}` } : {}
  const ws = new WebSocket(urlOf(endpoint, target), { headers })
  ws.binaryType = 'arraybuffer'

  const unread: Message[] = []
  let unreadBytes = 0
  let paused = false
  let end: { readonly clean: boolean; readonly reason: string } | undefined
  let wake = deferred<void>()
  let sentSincePing = 0
  let pings = 0
  let pong = deferred<void>()

  const opened = deferred<boolean>()
  ws.onopen = () => {
    opened.resolve(true)
  }
  ws.onmessage = ({ data }: MessageEvent<string | ArrayBuffer>) => {
    const message = typeof data === 'string' ? data : new Uint8Array(data)
    unread.push(message)
    unreadBytes += message.length
    if (!paused && unreadBytes > UNREAD_HIGH) {
      paused = true
      ws.pause()
    }
    wake.resolve()
  }
  ws.onerror = () => undefined // a close event follows and says more
  ws.onclose = ({ code, reason }) => {
    end = {
      clean: code === 1000 || code === 1005,
      reason: reason !== '' ? reason : code === 1006 ? 'it was cut' : `it closed with code ${code}`,
    }
    opened.resolve(false)
    wake.resolve()
    pong.resolve()
  }
  ws.addEventListener('pong' as 'message', () => {
    pings--
    pong.resolve()
    pong = deferred()
  })

  if (!(await opened.promise)) throw await refusal(endpoint, target, said)

  return {
    async *messages() {
      for (;;) {
        const message = unread.shift()
        if (message !== undefined) {
          unreadBytes -= message.length
          if (paused && unreadBytes < UNREAD_LOW) {
            paused = false
            ws.resume()
          }
          yield message
        } else if (end) {
          if (end.clean) return
          throw faultOfClose(end.reason) ?? connectionLost({ endpoint: said, reason: end.reason })
        } else {
          wake = deferred()
          await wake.promise
        }
      }
    },
    async send(message) {
      if (end) return
      ws.send(message as string | Uint8Array<ArrayBuffer>)
      sentSincePing += message.length
      if (sentSincePing < PING_EVERY) return
      sentSincePing = 0
      pings++
      ws.ping()
      while (pings >= PINGS_MAX && !end) await pong.promise
    },
    close() {
      if (paused) ws.resume() // a paused socket does not see the peer's close
      ws.close(1000)
    },
  }
}
