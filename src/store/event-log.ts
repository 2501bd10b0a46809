import { and, asc, eq, gt, inArray, sql } from 'drizzle-orm'
import type { Static, TObject } from '@sinclair/typebox'
import type { NounEvents } from '../contract/event.ts'
import type { Event, EventType } from '../contract/events.ts'
import { fill } from '../contract/schema.ts'
import { vmEvents } from '../contract/vm.ts'
import { events } from './schema.ts'
import { prepared, type Rows, type Store } from './store.ts'

/** An event that is reported, by the declaration of its noun. */
export interface NewEvent<T extends string, D extends TObject> {
  readonly type: T
  readonly name: string
  readonly uid?: string | null
  readonly message?: string
  readonly data?: Partial<Static<D>>
}
/** Which events a reader wants. */
export interface Only {
  readonly noun?: string | undefined
  readonly types?: readonly string[] | undefined
  readonly name?: string | undefined
}

const value = sql.placeholder
const insertEvent = prepared((store) =>
  store
    .insert(events)
    .values({
      noun: value('noun'),
      type: value('type'),
      name: value('name'),
      uid: value('uid'),
      data: value('data'),
      message: value('message'),
      at: value('at'),
    })
    .prepare(),
)

/** The fields of a vm's event, empty: they stand in an event of every noun on the wire. */
const EMPTY = fill(vmEvents.data, {})

/** Events that are kept; older ones are compacted away, and a reader that resumes before them is told so. */
const KEPT = 100_000
const COMPACT_EVERY = 1000

/**
 * The durable log of events. An event is appended in the transaction that makes it true, so no reader sees one that did
 * not happen, and none is lost. Readers keep their own place: they are woken and read on from their sequence number, so
 * a slow one loses nothing.
 */
export class EventLog {
  readonly #store: Rows
  #waiting = new Set<() => void>()
  #appended = 0

  constructor(store: Rows) {
    this.#store = store
  }

  /** Adds an event; call it inside the transaction (`tx`) of what it reports. */
  append<T extends string, D extends TObject>(tx: Store, of: NounEvents<T, D>, event: NewEvent<T, D>): void {
    insertEvent(tx).run({
      noun: of.noun,
      type: event.type,
      name: event.name,
      uid: event.uid ?? null,
      data: fill(of.data, event.data ?? {}),
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

  after(seq: number, limit: number, only: Only = {}): Event[] {
    return this.#store
      .select()
      .from(events)
      .where(
        and(
          gt(events.seq, seq),
          only.noun ? eq(events.noun, only.noun) : undefined,
          only.types ? inArray(events.type, [...only.types]) : undefined,
          only.name ? eq(events.name, only.name) : undefined,
        ),
      )
      .orderBy(asc(events.seq))
      .limit(limit)
      .all()
      .map(({ seq: number, type, name, uid, message, data, at }) => ({
        ...EMPTY,
        ...data,
        seq: number,
        type: type as EventType,
        name,
        uid,
        message,
        timestamp: new Date(at).toISOString(),
      }))
  }

  /** Reads the newest sequence number; 0 before the first event. */
  newest(): number {
    return this.#bound('max')
  }
  /** Reads the oldest number that is still there; 0 where there is none. */
  oldest(): number {
    return this.#bound('min')
  }

  #bound(what: 'min' | 'max'): number {
    return (
      (this.#store.$client.query(`SELECT ${what}(seq) AS seq FROM events`).get() as { seq: number | null }).seq ?? 0
    )
  }
}
