import { expect, test } from 'bun:test'
import { Allowance } from '../../src/lib/allowance.ts'

const clocked = (perSecond: number, burst: number) => {
  const clock = { ms: 0 }
  return { clock, allowance: new Allowance({ perSecond, burst }, () => clock.ms) }
}

test('a burst is allowed at once, and not one more', () => {
  const { allowance } = clocked(1, 3)

  expect([1, 2, 3, 4].map(() => allowance.take())).toEqual([true, true, true, false])
})

test('it fills by its rate and never above its burst', () => {
  const { clock, allowance } = clocked(2, 3)
  allowance.take(3)

  clock.ms = 400
  expect(allowance.take()).toBe(false)
  clock.ms = 500
  expect(allowance.take()).toBe(true)
  clock.ms = 100_000
  expect(allowance.take(3)).toBe(true)
  expect(allowance.take()).toBe(false)
})

test('what is refused takes nothing', () => {
  const { allowance } = clocked(1, 5)

  expect(allowance.take(6)).toBe(false)
  expect(allowance.take(5)).toBe(true)
})

test('what is owed is told as the time until it is filled up', () => {
  const { clock, allowance } = clocked(100, 100)

  expect(allowance.reserve(100)).toBe(0)
  expect(allowance.reserve(50)).toBe(500)
  clock.ms = 500
  expect(allowance.reserve(0)).toBe(0)
})
