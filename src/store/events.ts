import { and, asc, eq, gt, inArray, sql } from 'drizzle-orm'
import type { Event, EVENT_TYPES } from '../contract/system.ts'
import { events } from './schema.ts'
import { prepared, type Rows, type Store } from './store.ts'

export type EventType = (typeof EVENT_TYPES)[number]
export interface NewEvent {
  readonly type: EventType
  readonly name: string
  readonly uid?: string | null
  readonly status?: string
  readonly ip?: string
  readonly mac?: string
  readonly pid?: number | null
  readonly message?: string
}

const value = sql.placeholder
const insertEvent = prepared((store) =>
  store
    .insert(events)
    .values({
      type: value('type'),
      name: value('name'),
      uid: value('uid'),
      status: value('status'),
      ipAddress: value('ip'),
      macAddress: value('mac'),
      pid: value('pid'),
      message: value('message'),
      at: value('at'),
    })
    .prepare(),
)

/** Events that are kept; older ones are compacted away, and a reader that resumes before them is told so. */
const KEPT = 100_000
const COMPACT_EVERY = 1000

/**
 * The durable log of events. An event is appended in the transaction that makes it true, so no reader sees one that did not happen,
 * and none is lost. Readers keep their own place: they are woken and read on from their sequence number, so a slow one loses nothing.
 */
export class EventLog {
  readonly #store: Rows
  #waiting = new Set<() => void>()
  #appended = 0

  constructor(store: Rows) {
    this.#store = store
  }

  /** Call inside the transaction (`tx`) of what it reports. */
  append(tx: Store, event: NewEvent): void {
    insertEvent(tx).run({
      type: event.type,
      name: event.name,
      uid: event.uid ?? null,
      status: event.status ?? '',
      ip: event.ip ?? '',
      mac: event.mac ?? '',
      pid: event.pid ?? null,
      message: event.message ?? '',
      at: Date.now(),
    })
    if (++this.#appended % COMPACT_EVERY === 0) {
      tx.run(sql`DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ${KEPT}`)
    }
    queueMicrotask(() => {
      this.#wake()
    }) // the transaction is synchronous: it has ended by then
  }

  #wake(): void {
    const waiting = this.#waiting
    this.#waiting = new Set()
    for (const wake of waiting) wake()
  }

  /** Resolves when something was appended after this call, or the signal is aborted. */
  appended(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      if (signal.aborted) {
        resolve()
        return
      }
      const wake = () => {
        signal.removeEventListener('abort', wake)
        this.#waiting.delete(wake)
        resolve()
      }
      this.#waiting.add(wake)
      signal.addEventListener('abort', wake, { once: true })
    })
  }

  after(
    seq: number,
    limit: number,
    only: { readonly types?: readonly string[] | undefined; readonly name?: string | undefined } = {},
  ): Event[] {
    return this.#store
      .select()
      .from(events)
      .where(
        and(
          gt(events.seq, seq),
          only.types ? inArray(events.type, [...only.types]) : undefined,
          only.name ? eq(events.name, only.name) : undefined,
        ),
      )
      .orderBy(asc(events.seq))
      .limit(limit)
      .all()
      .map(({ at, ipAddress, macAddress, type, ...row }) => ({
        ...row,
        type: type as EventType,
        ip_address: ipAddress,
        mac_address: macAddress,
        timestamp: new Date(at).toISOString(),
      }))
  }

  /** The newest sequence number; 0 before the first event. */
  newest(): number {
    return this.#bound('max')
  }
  /** The oldest that is still there; 0 where there is none. */
  oldest(): number {
    return this.#bound('min')
  }

  #bound(what: 'min' | 'max'): number {
    return (
      (this.#store.$client.query(`SELECT ${what}(seq) AS seq FROM events`).get() as { seq: number | null }).seq ?? 0
    )
  }
}
