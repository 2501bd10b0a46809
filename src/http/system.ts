import { Elysia } from 'elysia'
import { systemOperations as op } from '../contract/system.ts'
import type { Host } from '../host.ts'
import { doctor } from '../system/doctor.ts'
import { follow } from '../system/events.ts'
import { info, summary } from '../system/info.ts'
import type { Tokens } from '../system/tokens.ts'
import { hook, json, noContent, sse } from './answer.ts'
import { openapi } from './openapi.ts'

const ok = () => json({ status: 'ok' })

export const systemRoutes = (host: Host, tokens: Tokens) => {
  const document = JSON.stringify(openapi(host.version))
  const events =
    (only: 'vms' | 'all') =>
    ({
      query,
      request,
    }: {
      query: { after?: number; follow?: boolean; type?: string; name?: string }
      request: Request
    }) =>
      sse(follow(host, only, query, request.headers.get('last-event-id'), request.signal), request.signal, (event) => ({
        id: event.seq,
        event: event.type,
        data: event,
      }))
  return new Elysia({ name: 'http/system', normalize: false, strictPath: true })
    .get(op['system.health'].path, ok)
    .get(op['system.status'].path, ok)
    .get(op['system.info'].path, () => json(info(host)))
    .get(op['system.summary'].path, () => json(summary(host)))
    .get(op['system.doctor'].path, async () => json(await doctor(host.hypervisors.checks, host.config)))
    .get('/openapi', () => new Response(document, { headers: { 'content-type': 'application/json' } }))
    .get(op['events'].path, events('all'), hook(op['events']))
    .get(op['events.vms'].path, events('vms'), hook(op['events.vms']))
    .post(op['token.create'].path, ({ body }) => json(tokens.create(body), 201), hook(op['token.create']))
    .get(op['token.list'].path, () => json(tokens.list()))
    .delete(
      op['token.delete'].path,
      ({ params }) => {
        tokens.delete(params.name)
        return noContent()
      },
      hook(op['token.delete']),
    )
}
