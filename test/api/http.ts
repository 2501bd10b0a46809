import { request, type IncomingMessage } from 'node:http'
import type { Daemon } from '../e2e/daemon.ts'

/**
 * A request as any program can make it: whatever headers, whatever bytes. The client of the product would refuse to
 * send most of these.
 */
export interface Ask {
  readonly method?: string
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string | Uint8Array
}
export interface Answer {
  readonly status: number
  readonly headers: IncomingMessage['headers']
  readonly text: string
  /** The JSON of the body; an empty record where it is none. */
  readonly json: Readonly<Record<string, unknown>>
}
export type Target = { readonly socketPath: string } | { readonly host: string; readonly port: number }

export const ask = (target: Target, { method = 'GET', path, headers = {}, body }: Ask): Promise<Answer> =>
  new Promise((resolve, reject) => {
    const outgoing = request({
      ...target,
      method,
      path,
      agent: false,
      headers: {
        ...(body === undefined
          ? {}
          : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) }),
        ...headers,
      },
    })
    const timer = setTimeout(() => {
      outgoing.destroy(new Error(`no answer to ${method} ${path}`))
    }, 20_000)
    const done = (status: number, of: IncomingMessage['headers'], text: string) => {
      clearTimeout(timer)
      let json: Record<string, unknown> = {}
      try {
        json = JSON.parse(text) as Record<string, unknown>
      } catch {
        /* it is no JSON */
      }
      resolve({ status, headers: of, text, json })
      outgoing.destroy()
    }
    outgoing.on('response', (answer) => {
      const parts: Buffer[] = []
      // the first bytes of a stream say that it was let through; it has no end
      const streaming = String(answer.headers['content-type']).startsWith('text/event-stream')
      answer.on('data', (part: Buffer) => {
        parts.push(part)
        if (streaming) done(answer.statusCode ?? 0, answer.headers, Buffer.concat(parts).toString('utf8'))
      })
      answer.on('end', () => {
        done(answer.statusCode ?? 0, answer.headers, Buffer.concat(parts).toString('utf8'))
      })
      answer.on('error', reject)
    })
    outgoing.on('upgrade', (answer, socket) => {
      socket.destroy()
      done(101, answer.headers, '')
    })
    outgoing.on('error', (error) => {
      clearTimeout(timer)
      reject(error)
    })
    outgoing.end(body)
  })

export const UPGRADE = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
} as const

/** Where a daemon that was started with `--listen 127.0.0.1:0` listens. */
export const portOf = (daemon: Daemon): number => {
  const port = Number(/http:\/\/127\.0\.0\.1:(\d+)/.exec(daemon.log())?.[1])
  if (!Number.isInteger(port) || port === 0) throw new Error(`the daemon does not say its port: ${daemon.log()}`)
  return port
}
