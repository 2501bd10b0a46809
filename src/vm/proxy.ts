import { type IncomingMessage, request as httpRequest } from 'node:http'
import type { Duplex } from 'node:stream'
import type { Socket } from 'node:net'
import { Readable } from 'node:stream'
import { accepted, converse, open } from '../guest/conversation.ts'
import { KIND } from '../guest/frames.ts'
import { patiently } from '../guest/patience.ts'
import type { Host } from '../host.ts'
import { Fault } from '../lib/fault.ts'
import { running } from './machine/running.ts'
import { forCaller, forGuest, type Proxied, type ProxiedPath } from './machine/proxy-headers.ts'
import { messageOf } from '../lib/thrown.ts'
import { portUndeclared, proxyFailed, proxyTimeout, upgradeUnsupported } from './row/errors.ts'

/** How long the agent may take to answer that it lives. */
const HEALTH_MS = 10_000
/**
 * How long it may take to reach a server of the guest: longer than the agent waits for a place in that one's queue, so
 * that its word is heard.
 */
const DIAL_MS = 40_000

/**
 * Opens a stream to a TCP port (127.0.0.1, then ::1) or a Unix socket of the guest. @throws `proxy_failed`,
 * `guest_busy`, `vm_wrong_state`, `agent_unavailable`
 */
export const dial = async (
  host: Pick<Host, 'store' | 'vms'>,
  ref: string,
  to: number | string,
  client: AbortSignal,
): Promise<Duplex> => {
  const { row, machine } = running(host, ref, 'reach into', 'read')
  const body = typeof to === 'number' ? { port: to } : { unix: to }
  return await patiently(machine, DIAL_MS, client, async (signal) => {
    const conversation = await open(machine, KIND.proxy, body, signal)
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
  })
}

/** How long a workload may take, ms. */
export interface ProxyLimits {
  /** The time from the end of the request to the end of the answer's head, ms: a head that trickles is no answer. */
  readonly headMs: number
  /** The time between two pieces of a body, ms, either way. */
  readonly idleMs: number
}
const LIMITS: ProxyLimits = { headMs: 60_000, idleMs: 300_000 }
/** Answers of status 100 to 199 that may come before the one that counts. */
const INTERIM_MAX = 16
/** Bytes of the head of an answer. */
const HEAD_MAX = 65_536

/**
 * Carries HTTP through the API to the workload's declared port. `healthz` is answered by asking the agent.
 *
 * @throws `vm_wrong_state`, `port_undeclared`, `proxy_failed`, `proxy_timeout`, `upgrade_unsupported`
 */
export const proxy = async (
  host: Pick<Host, 'store' | 'vms'>,
  ref: string,
  path: ProxiedPath,
  incoming: Request,
  limits: ProxyLimits = LIMITS,
): Promise<Response> => {
  const { row, machine } = running(host, ref, 'reach into', 'read')
  if (path.rest === 'healthz') {
    const { conversation, ok } = await patiently(machine, HEALTH_MS, incoming.signal, (signal) =>
      converse(machine, 'metrics', {}, signal),
    )
    conversation.close()
    return Response.json({ status: 'ok', uptime: ok.uptime_ms })
  }
  if (incoming.headers.has('upgrade')) throw upgradeUnsupported({ name: row.name })
  const port = row.spec.workload.port
  if (port === undefined) throw portUndeclared({ name: row.name })
  const stream = await dial(host, row.uid, port, incoming.signal)
  const late = (ms: number) => proxyTimeout({ name: row.name, port, seconds: ms / 1000 })
  try {
    return await exchange(stream, { ...path, port }, incoming, limits, late)
  } catch (error) {
    stream.destroy()
    throw error instanceof Fault ? error : proxyFailed({ name: row.name, port, reason: messageOf(error) }, error)
  }
}

/** Calls `late` where nothing happened for a while; every `happened` begins anew. */
const watchOf = (late: (ms: number) => void) => {
  let timer: ReturnType<typeof setTimeout> | undefined
  const stop = () => {
    clearTimeout(timer)
  }
  return {
    stop,
    happened: (ms: number) => {
      stop()
      timer = setTimeout(late, ms, ms)
    },
  }
}

/** Sends one request into the guest and answers with what comes back. Whatever that is, it comes to an end here. */
const exchange = (
  stream: Duplex,
  to: Proxied,
  incoming: Request,
  limits: ProxyLimits,
  late: (ms: number) => Fault,
): Promise<Response> => {
  const { search } = new URL(incoming.url)
  return new Promise((resolve, reject) => {
    const fail = (error: Error) => {
      watch.stop()
      stream.destroy()
      reject(error)
    }
    const watch = watchOf((ms) => {
      fail(late(ms))
    })
    const outgoing = httpRequest({
      method: incoming.method,
      path: `/${to.rest}${search}`,
      headers: forGuest(incoming.headers, to),
      maxHeaderSize: HEAD_MAX,
      createConnection: () => stream as Socket,
    })
    outgoing.on('response', (answer) => {
      try {
        resolve(answerOf(answer, incoming.method, to, limits, watch))
      } catch (error) {
        answer.destroy()
        fail(error as Error)
      }
    })
    let interim = 0
    outgoing.on('information', () => {
      if (++interim > INTERIM_MAX) fail(new Error('it says again and again that it will answer'))
    })
    outgoing.on('upgrade', () => {
      fail(new Error('it switched to another protocol, which nobody had asked for'))
    })
    outgoing.on('error', fail)
    stream.once('close', () => {
      fail(new Error('it closed the connection before it had answered'))
    })
    incoming.signal.addEventListener(
      'abort',
      () => {
        stream.destroy()
      },
      { once: true },
    )
    watch.happened(limits.idleMs)
    const sent = () => {
      watch.happened(limits.headMs)
    }
    if (!incoming.body) {
      outgoing.end()
      sent()
      return
    }
    const body = Readable.fromWeb(incoming.body as never)
    body.on('data', () => {
      watch.happened(limits.idleMs)
    })
    body.on('end', sent)
    body.on('error', fail)
    body.pipe(outgoing)
  })
}

/** @throws where the status is none that an answer can have */
const answerOf = (
  answer: IncomingMessage,
  method: string,
  to: Proxied,
  limits: ProxyLimits,
  watch: ReturnType<typeof watchOf>,
): Response => {
  const status = answer.statusCode ?? 0
  if (status < 200 || status > 599) throw new Error(`it answered with status ${status}`)
  const headers = forCaller(answer.headers, to)
  if (method === 'HEAD' || status === 204 || status === 205 || status === 304) {
    watch.stop()
    answer.destroy()
    return new Response(null, { status, headers })
  }
  watch.happened(limits.idleMs)
  answer.on('data', () => {
    watch.happened(limits.idleMs)
  })
  answer.on('close', watch.stop)
  return new Response(Readable.toWeb(answer) as unknown as ReadableStream, { status, headers })
}
