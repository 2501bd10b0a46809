import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { eq } from 'drizzle-orm'
import { requestInvalid } from '../../src/lib/errors.ts'
import { type Claim, type Made, Repeats } from '../../src/store/idempotency.ts'
import { openStore } from '../../src/store/open.ts'
import { idempotency } from '../../src/store/schema.ts'
import { immediate, type Store } from '../../src/store/store.ts'

let folder: string
let store: Store
let repeats: Repeats
/** What there is, by uid: in the place of a noun's table. */
let things: Map<string, string>
beforeEach(() => {
  folder = mkdtempSync('/tmp/aerie-u-')
  store = openStore(join(folder, 'state.db'))
  repeats = new Repeats(store)
  things = new Map()
})
afterEach(() => {
  store.$client.close()
  rmSync(folder, { recursive: true })
})

let carriedOut = 0
const makes =
  (...names: string[]) =>
  (claim: Claim): Promise<string[]> => {
    carriedOut++
    const made = names.map((name) => ({ uid: `${name}_${carriedOut}`, name }))
    immediate(store, (tx) => {
      for (const { uid, name } of made) things.set(uid, name)
      claim(tx, made)
    })
    return Promise.resolve(made.map((one) => one.uid))
  }
const left = (made: readonly Made[]): string[] | undefined => {
  const there = made.map((one) => one.uid).filter((uid) => things.has(uid))
  return there.length === 0 ? undefined : there
}
const request = (key: string, asked = '[]', operation = 'thing.create') => ({ key, asked, operation })
const codeOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'none',
    (error: unknown) => (error as { code: string }).code,
  )

test('a second request finds what the first one made, of one thing or of many, and after a restart too', async () => {
  for (const names of [['a'], ['b', 'c', 'd']]) {
    const key = names.join('')
    const first = await repeats.once(request(key), makes(...names), left)

    expect(await repeats.once(request(key), makes(...names), left)).toEqual(first)
    expect(await new Repeats(store).once(request(key), makes(...names), left)).toEqual(first)
  }
  expect(things.size).toBe(4)
})

test('one that comes while the first runs joins it', async () => {
  const { promise, resolve } = Promise.withResolvers<undefined>()
  const slow = async (claim: Claim) => {
    await promise
    return makes('a')(claim)
  }
  const both = [repeats.once(request('k'), slow, left), repeats.once(request('k'), slow, left)]
  expect(await codeOf(repeats.once(request('k', '[1]'), slow, left))).toBe('idempotency_conflict')
  resolve(undefined)

  const [first, second] = await Promise.all(both)
  expect(second).toEqual(first)
  expect(things.size).toBe(1)
})

test('a key belongs to what was asked with it, and to its operation', async () => {
  await repeats.once(request('k'), makes('a'), left)

  for (const other of [request('k', '[1]'), request('k', '[]', 'thing.fork')])
    expect(await codeOf(repeats.once(other, makes('b'), left))).toBe('idempotency_conflict')
  expect(await codeOf(repeats.once(request(''), makes('b'), left))).toBe('request_invalid')
  expect(await codeOf(repeats.once(request('x'.repeat(256)), makes('b'), left))).toBe('request_invalid')
  expect(things.size).toBe(1)
})

test('where nothing is left of what was made, or a crash undid it, the request is carried out anew', async () => {
  const [gone = ''] = await repeats.once(request('k'), makes('a'), left)
  things.delete(gone)

  const [made = ''] = await new Repeats(store).once(request('k'), makes('a'), left)
  expect(made).not.toBe(gone)
  expect(await repeats.once(request('k'), makes('a'), left)).toEqual([made])
  const some = await repeats.once(request('n'), makes('x', 'y'), left)
  things.delete(some[0] ?? '')
  expect(await repeats.once(request('n'), makes('x', 'y'), left)).toEqual([some[1] ?? ''])
})

test('a fault is kept where something had been made, and tried again where not', async () => {
  const fails = async (claim: Claim): Promise<string[]> => {
    const made = await makes('a')(claim)
    for (const uid of made) things.delete(uid)
    throw requestInvalid({ reason: 'it fails', field: 'f' })
  }
  const before = carriedOut
  expect(await codeOf(repeats.once(request('k'), fails, left))).toBe('request_invalid')
  expect(await codeOf(new Repeats(store).once(request('k'), fails, left))).toBe('request_invalid')
  expect(carriedOut).toBe(before + 1)

  const refused = () => Promise.reject(requestInvalid({ reason: 'it is refused' }))
  expect(await codeOf(repeats.once(request('r'), refused, left))).toBe('request_invalid')
  expect(await repeats.once(request('r'), makes('b'), left)).toHaveLength(1)
})

test('a key is forgotten after a day', async () => {
  const first = await repeats.once(request('k'), makes('a'), left)
  store
    .update(idempotency)
    .set({ at: Date.now() - 25 * 3_600_000 })
    .where(eq(idempotency.key, 'k'))
    .run()

  expect(await repeats.once(request('k', '[other]'), makes('b'), left)).not.toEqual(first)
  await repeats.once(request('l'), makes('c'), left)
  expect(
    store
      .select()
      .from(idempotency)
      .all()
      .map((row) => row.key),
  ).toEqual(['k', 'l'])
})
