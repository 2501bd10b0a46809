import { expect, test } from 'bun:test'
import { deferred, orAbort, sleep } from '../../src/lib/promise.ts'

test('a sleep ends early, and says so, when its signal is aborted', async () => {
  const stop = new AbortController()

  expect(await sleep(1)).toBe(true)
  const sleeping = sleep(60_000, stop.signal)
  stop.abort()

  expect(await sleeping).toBe(false)
  expect(await sleep(60_000, stop.signal)).toBe(false)
})

test('orAbort is the promise, or the reason of the signal when that comes first', async () => {
  const stop = new AbortController()
  const never = deferred<number>()

  expect(await orAbort(Promise.resolve(7), stop.signal)).toBe(7)
  await expect(orAbort(Promise.reject(new Error('broke')), stop.signal)).rejects.toThrow('broke')
  const waiting = orAbort(never.promise, stop.signal)
  stop.abort(new Error('enough'))

  await expect(waiting).rejects.toThrow('enough')
  await expect(orAbort(Promise.resolve(7), stop.signal)).rejects.toThrow('enough')
})

test('a deferred that is rejected and never looked at is no crash', async () => {
  deferred<void>().reject(new Error('nobody waits'))

  await Bun.sleep(1) // an unhandled rejection would fail this test
})
