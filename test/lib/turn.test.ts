import { expect, test } from 'bun:test'
import { share } from '../../src/lib/turn.ts'

/** Handles pieces without an end, as a guest that never stops sends them. */
const greedy = async (state: { going: boolean; pieces: number }): Promise<void> => {
  while (state.going) {
    state.pieces++
    for (const from = performance.now(); performance.now() - from < 0.05; );
    await share()
  }
}

test('what never ends leaves room for everybody else', async () => {
  const state = { going: true, pieces: 0 }
  const guests = [greedy(state), greedy(state), greedy(state)]
  const turns: number[] = []
  for (let last = performance.now(); turns.length < 30; ) {
    await new Promise((resolve) => setTimeout(resolve, 1))
    const now = performance.now()
    turns.push(now - last)
    last = now
  }
  state.going = false
  await Promise.all(guests)

  expect(state.pieces).toBeGreaterThan(30)
  expect(turns.sort((a, b) => a - b)[15]).toBeLessThan(15)
})

test('a piece now and then waits for nobody', async () => {
  await new Promise((resolve) => setImmediate(resolve))

  expect(share()).toBeUndefined()
})
