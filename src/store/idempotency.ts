import { createHash } from 'node:crypto'
import { eq, sql } from 'drizzle-orm'
import { Type } from '@sinclair/typebox'
import { unexpected, requestInvalid } from '../lib/errors.ts'
import { fault, Fault, faultOf, recordOf } from '../lib/fault.ts'
import { idempotency } from './schema.ts'
import { immediate, type Store } from './store.ts'

export const idempotencyConflict = fault(
  'idempotency_conflict',
  'conflict',
  { key: Type.String() },
  (d) => `Cannot use Idempotency-Key "${d.key}" again: an earlier request with it asked for something else`,
)

/** Answers to a request with a key are kept this long. */
const KEY_MS = 24 * 3_600_000
const KEY_MAX = 255

/** One thing that a request made, of whatever noun. */
export interface Made {
  readonly uid: string
  readonly name: string
}

/**
 * Notes what a request makes; called in the transaction that makes it, so that key and thing are there both or neither.
 */
export type Claim = (tx: Store, made: readonly Made[]) => void

/** A request that may come again. */
export interface Repeatable {
  readonly key: string
  readonly operation: string
  /** What was asked, as JSON: a key that comes with something else is refused. */
  readonly asked: string
}

/**
 * Requests by their Idempotency-Key: a second one with the same key joins the first while it runs, and finds its fault
 * or what it made afterwards. After a crash of the daemon, what the first request had made and kept is found; where
 * nothing of it is left, the second one is carried out.
 */
export class Repeats {
  readonly #store: Store
  readonly #running = new Map<string, { readonly hash: string; readonly answer: Promise<unknown> }>()

  constructor(store: Store) {
    this.#store = store
  }

  /**
   * Answers a request once. It goes on when its caller goes away.
   *
   * @param work  carries the request out, and claims its key for what it makes
   * @param again  answers from what was made; undefined where nothing of it is left
   * @throws `request_invalid`, `idempotency_conflict`, and what `work` throws or threw
   */
  async once<T>(
    { key, operation, asked }: Repeatable,
    work: (claim: Claim) => Promise<T>,
    again: (made: readonly Made[]) => T | undefined,
  ): Promise<T> {
    if (key === '' || key.length > KEY_MAX)
      throw requestInvalid({
        field: 'Idempotency-Key',
        reason: `it has ${key.length} characters, 1 to ${KEY_MAX} are allowed`,
      })
    const hash = createHash('sha256').update(asked).digest('hex')
    const running = this.#running.get(key)
    if (running) {
      if (running.hash !== `${operation} ${hash}`) throw idempotencyConflict({ key })
      return (await running.answer) as T
    }
    const earlier = this.#store.select().from(idempotency).where(eq(idempotency.key, key)).get()
    if (earlier && Date.now() - earlier.at < KEY_MS) {
      if (earlier.operation !== operation || earlier.requestHash !== hash) throw idempotencyConflict({ key })
      if (earlier.fault) throw faultOf(earlier.fault)
      const answer = again(earlier.made)
      if (answer !== undefined) return answer
    }
    const answer = this.#first(key, operation, hash, work)
    this.#running.set(key, { hash: `${operation} ${hash}`, answer })
    answer.catch(() => undefined) // the caller may have gone; the fault is kept under its key
    return await answer
  }

  async #first<T>(key: string, operation: string, hash: string, work: (claim: Claim) => Promise<T>): Promise<T> {
    let claimed = false
    const claim: Claim = (tx, made) => {
      const at = Date.now()
      const row = { operation, requestHash: hash, made: made.map(({ uid, name }) => ({ uid, name })), at, fault: null }
      tx.insert(idempotency)
        .values({ key, ...row })
        .onConflictDoUpdate({ target: idempotency.key, set: row })
        .run()
      tx.delete(idempotency)
        .where(sql`${idempotency.at} < ${at - KEY_MS}`)
        .run()
      claimed = true
    }
    try {
      return await work(claim)
    } catch (error) {
      // What came to nothing before it made anything may be tried again.
      if (claimed) {
        const fault = error instanceof Fault ? error : unexpected(error)
        immediate(this.#store, (tx) =>
          tx
            .update(idempotency)
            .set({ fault: recordOf(fault) })
            .where(eq(idempotency.key, key))
            .run(),
        )
      }
      throw error
    } finally {
      this.#running.delete(key)
    }
  }
}
