import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { asc, eq, sql, type SQL } from 'drizzle-orm'
import { Type } from '@sinclair/typebox'
import type { Scope } from '../contract/operation.ts'
import type { Token, TokenCreate } from '../contract/system.ts'
import { fault } from '../lib/fault.ts'
import { didYouMean, lookUp, MATCHES_MAX, type Use } from '../lib/reference.ts'
import { tokens } from '../store/schema.ts'
import { isDiskFull } from '../lib/errors.ts'
import { immediate, isDuplicate, type Store } from '../store/store.ts'

export const tokenExists = fault(
  'token_exists',
  'conflict',
  { name: Type.String() },
  (d) => `Cannot make token "${d.name}": a token of this name exists`,
)
export const tokenNotFound = fault(
  'token_not_found',
  'not_found',
  { name: Type.String(), meant: Type.Optional(Type.Array(Type.String())) },
  (d) => `Cannot find token "${d.name}"`,
  (d) => didYouMean(d.meant ?? [], '`aerie token ls` lists the tokens'),
)

const PREFIX = 'aerie_'
/** The time between two notes of a token's use, ms: a request costs no write. */
const NOTE_MS = 60_000

const digest = (secret: string): string => createHash('sha256').update(secret).digest('hex')
const iso = (ms: number | null): string | null => (ms === null ? null : new Date(ms).toISOString())
const view = (row: typeof tokens.$inferSelect): Token => ({
  name: row.name,
  prefix: row.prefix,
  scope: row.scope,
  created_at: new Date(row.createdAt).toISOString(),
  expires_at: iso(row.expiresAt),
  last_used_at: iso(row.lastUsedAt),
})

/**
 * The keys of the TCP API. A secret has 256 bits of randomness, so its SHA-256 is all that is kept; it is shown once.
 */
export class Tokens {
  readonly #store: Store

  constructor(store: Store) {
    this.#store = store
  }

  /** Makes a token; its secret is in this answer alone. @throws `token_exists` */
  create(want: TokenCreate): Token & { secret: string } {
    const secret = `${PREFIX}${randomBytes(32).toString('base64url')}`
    const now = Date.now()
    try {
      const row = this.#store
        .insert(tokens)
        .values({
          name: want.name,
          prefix: secret.slice(0, PREFIX.length + 4),
          hash: digest(secret),
          scope: want.scope ?? 'read',
          createdAt: now,
          expiresAt: want.expires_in_s === undefined ? null : now + want.expires_in_s * 1000,
        })
        .returning()
        .get()
      return { ...view(row), secret }
    } catch (error) {
      if (isDuplicate(error, 'tokens.name')) throw tokenExists({ name: want.name })
      throw error
    }
  }

  list(): Token[] {
    return this.#store.select().from(tokens).orderBy(asc(tokens.name)).all().map(view)
  }

  /** @throws `token_not_found` */
  get(name: string): Token {
    return view(this.#find(name, 'read'))
  }

  /** @throws `token_not_found` */
  delete(name: string): void {
    immediate(this.#store, (tx) => {
      tx.delete(tokens)
        .where(eq(tokens.hash, this.#find(name, 'change', tx).hash))
        .run()
    })
  }

  #find(name: string, use: Use, tx = this.#store) {
    const select = (where: SQL) => tx.select().from(tokens).where(where).limit(MATCHES_MAX).all()
    const notFound = (ref: string, meant: readonly string[]) => tokenNotFound({ name: ref, meant: [...meant] })
    return lookUp(
      name,
      {
        exact: [() => select(eq(tokens.name, name))],
        like: () => select(sql`substr(${tokens.name}, 1, ${name.length}) = ${name}`).map((one) => one.name),
        nameOf: (one) => one.name,
        notFound,
        ambiguous: notFound, // a name is one of a kind
      },
      use,
    )
  }

  /**
   * Tells what a secret allows; undefined where it is unknown or expired. The comparison takes the same time whatever
   * differs.
   */
  scopeOf(secret: string): Scope | undefined {
    const hash = digest(secret)
    const row = this.#store.select().from(tokens).where(eq(tokens.hash, hash)).get()
    if (!row || !timingSafeEqual(Buffer.from(row.hash, 'hex'), Buffer.from(hash, 'hex'))) return undefined
    const now = Date.now()
    if (row.expiresAt !== null && row.expiresAt <= now) return undefined
    if ((row.lastUsedAt ?? 0) < now - NOTE_MS) this.#noteUse(row.name, now)
    return row.scope
  }

  /** Notes when a token was used last. On a full disk it goes unnoted: what the token allows is true all the same. */
  #noteUse(name: string, now: number): void {
    try {
      immediate(this.#store, (tx) => tx.update(tokens).set({ lastUsedAt: now }).where(eq(tokens.name, name)).run())
    } catch (error) {
      if (!isDiskFull(error)) throw error
    }
  }
}
