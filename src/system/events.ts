import { Type } from '@sinclair/typebox'
import type { Event } from '../contract/events.ts'
import { vmEvents } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { fault } from '../lib/fault.ts'

const eventsCompacted = fault(
  'events_compacted',
  'conflict',
  { after: Type.Integer(), oldest: Type.Integer() },
  (d) => `Cannot go on after event ${d.after}: the oldest that is kept is ${d.oldest}`,
  'List the vms anew, then read events without `after`',
)

const PAGE = 500

/**
 * Events after a sequence number, then those that come. Without a place to start: only those that come.
 *
 * @throws `events_compacted` where events between the place and the oldest kept one are gone: the reader must list anew
 */
export const follow = (
  host: Pick<Host, 'store'>,
  only: 'vms' | 'all',
  query: { readonly after?: number; readonly follow?: boolean; readonly type?: string; readonly name?: string },
  lastEventId: string | null,
  client: AbortSignal,
): AsyncGenerator<Event> => {
  const resumed = lastEventId !== null && /^\d{1,15}$/.test(lastEventId) ? Number(lastEventId) : query.after
  const after = resumed ?? (query.follow === false ? 0 : host.store.events.newest())
  const oldest = host.store.events.oldest()
  if (resumed !== undefined && resumed > 0 && resumed < oldest - 1) throw eventsCompacted({ after: resumed, oldest })
  return read(host, only, after, query, client)
}

async function* read(
  host: Pick<Host, 'store'>,
  only: 'vms' | 'all',
  from: number,
  query: { readonly follow?: boolean; readonly type?: string; readonly name?: string },
  client: AbortSignal,
): AsyncGenerator<Event> {
  const types = query.type?.split(',')
  const noun = only === 'vms' ? vmEvents.noun : undefined
  let after = from
  while (!client.aborted) {
    const appended = host.store.events.appended(client)
    const newest = host.store.events.newest()
    const page = host.store.events.after(after, PAGE, { noun, types, name: query.name })
    yield* page
    after = page.length === PAGE ? (page.at(-1)?.seq ?? after) : newest
    if (page.length === PAGE) continue
    if (query.follow === false) return
    await appended
  }
}
