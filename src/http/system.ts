import type { Host } from '../host.ts'
import { cachedDoctor } from '../system/doctor.ts'
import { follow } from '../system/events.ts'
import { info, summary } from '../system/info.ts'
import type { Tokens } from '../system/tokens.ts'
import { sse } from './answer.ts'
import type { Asked, Handlers } from './handler.ts'
import { openapi } from './openapi.ts'

/** Handles the operations of the daemon itself: information, events, tokens, its document. */
export const systemHandlers = (host: Host, tokens: Tokens) => {
  const examine = cachedDoctor(host.hypervisors.checks, host.config)
  const document = JSON.stringify(openapi(host.daemon.version))
  const events = (only: 'vms' | 'all', { query, request, signal }: Asked<'events' | 'events.vms'>): Response =>
    sse(follow(host, only, query, request.headers.get('last-event-id'), signal), signal, (event) => ({
      id: event.seq,
      event: event.type,
      data: event,
    }))
  return {
    'system.health': () => ({ status: 'ok' }),
    'system.status': () => ({ status: 'ok' }),
    'system.info': () => info(host),
    'system.summary': () => summary(host),
    'system.doctor': () => examine(),
    'system.openapi': () => new Response(document, { headers: { 'content-type': 'application/json' } }),
    events: (asked) => events('all', asked),
    'events.vms': (asked) => events('vms', asked),
    'token.create': ({ body }) => tokens.create(body),
    'token.list': () => tokens.list(),
    'token.get': ({ params }) => tokens.get(params.name),
    'token.delete': ({ params }) => tokens.delete(params.name),
  } satisfies Partial<Handlers>
}
