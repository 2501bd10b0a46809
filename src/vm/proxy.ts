import { request as httpRequest } from 'node:http'
import type { Duplex } from 'node:stream'
import type { Socket } from 'node:net'
import { Readable } from 'node:stream'
import { accepted, converse, open } from '../guest/conversation.ts'
import { KIND } from '../guest/frames.ts'
import type { Host } from '../host.ts'
import { Fault } from '../lib/fault.ts'
import { running } from './machine/running.ts'
import { portUndeclared, proxyFailed, upgradeUnsupported } from './row/errors.ts'

const CONNECT_MS = 10_000

/** Headers that say something of one connection, not of the message (RFC 9110, section 7.6.1). */
const HOP_BY_HOP = [
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]
/** What a caller shows to us is not the guest's to see. */
const OURS = ['authorization', 'x-volant-api-key', 'cookie', 'host', 'x-request-id']
/** The guest's pages share the origin of the API: they run without it. */
const SANDBOX = 'sandbox allow-scripts allow-forms'

/** Opens a stream to a TCP port (127.0.0.1, then ::1) or a Unix socket of the guest. @throws `proxy_failed`, `guest_busy`, `vm_wrong_state`, `agent_unavailable` */
export const dial = async (
  host: Pick<Host, 'store' | 'vms'>,
  ref: string,
  to: number | string,
  client: AbortSignal,
): Promise<Duplex> => {
  const { row, machine } = running(host, ref, 'reach into', 'read')
  const signal = AbortSignal.any([client, AbortSignal.timeout(CONNECT_MS)])
  const conversation = await open(machine, KIND.proxy, typeof to === 'number' ? { port: to } : { unix: to }, signal)
  try {
    await accepted(conversation, undefined, signal)
    return conversation.raw()
  } catch (error) {
    if (error instanceof Fault && error.kind === 'exhausted') throw error
    throw proxyFailed(
      {
        name: row.name,
        port: typeof to === 'number' ? to : 0,
        reason: error instanceof Fault ? error.message : 'it did not answer in time',
      },
      error,
    )
  }
}

/** The path of a proxied request: what is the workload's, undecoded, and what stands before it. */
export interface ProxiedPath {
  readonly rest: string
  readonly base: string
}

/**
 * HTTP through the API to the workload's declared port. `healthz` is answered by asking the agent.
 *
 * @throws `vm_wrong_state`, `port_undeclared`, `proxy_failed`, `upgrade_unsupported`
 */
export const proxy = async (
  host: Pick<Host, 'store' | 'vms'>,
  ref: string,
  path: ProxiedPath,
  incoming: Request,
): Promise<Response> => {
  const { row, machine } = running(host, ref, 'reach into', 'read')
  if (path.rest === 'healthz') {
    const { conversation, ok } = await converse(machine, KIND.metrics, {}, AbortSignal.timeout(CONNECT_MS))
    conversation.close()
    return Response.json({ status: 'ok', uptime: ok['uptime_ms'] })
  }
  if (incoming.headers.has('upgrade')) throw upgradeUnsupported({ name: row.name })
  const port = row.spec.workload.port
  if (port === undefined) throw portUndeclared({ name: row.name })
  const stream = await dial(host, row.uid, port, incoming.signal)
  try {
    return await exchange(stream, path, port, incoming)
  } catch (error) {
    stream.destroy()
    throw error instanceof Fault
      ? error
      : proxyFailed({ name: row.name, port, reason: error instanceof Error ? error.message : String(error) }, error)
  }
}

const exchange = (stream: Duplex, path: ProxiedPath, port: number, incoming: Request): Promise<Response> => {
  const url = new URL(incoming.url)
  const headers: Record<string, string> = { host: `localhost:${port}`, connection: 'close' }
  for (const [name, value] of incoming.headers)
    if (!HOP_BY_HOP.includes(name) && !OURS.includes(name)) headers[name] = value
  const target = `/${path.rest}${url.search}`
  return new Promise((resolve, reject) => {
    const outgoing = httpRequest(
      { method: incoming.method, path: target, headers, createConnection: () => stream as Socket },
      (answer) => {
        const out = new Headers()
        for (const [name, value] of Object.entries(answer.headers)) {
          if (value === undefined || HOP_BY_HOP.includes(name)) continue
          for (const one of Array.isArray(value) ? value : [value]) out.append(name, one)
        }
        out.set('content-security-policy', SANDBOX)
        out.delete('set-cookie')
        const bodiless = incoming.method === 'HEAD' || answer.statusCode === 204 || answer.statusCode === 304
        resolve(
          new Response(bodiless ? null : (Readable.toWeb(answer) as unknown as ReadableStream), {
            status: answer.statusCode ?? 502,
            headers: out,
          }),
        )
      },
    )
    outgoing.on('error', reject)
    incoming.signal.addEventListener(
      'abort',
      () => {
        stream.destroy()
      },
      { once: true },
    )
    if (incoming.body) Readable.fromWeb(incoming.body as never).pipe(outgoing)
    else outgoing.end()
  })
}
