import { expect, test } from 'bun:test'
import { Inherited, numbered } from '../../src/linux/inherited.ts'

test('names are numbered by their place, and lists come behind them, whatever is not given', () => {
  const names = numbered('api', 'log', 'state')
  const given = new Inherited(names)

  const disks = given.list([40, 41])
  given.name('log', 42)
  const nics = given.list([43])
  given.name('api', 44)

  expect(names).toEqual({ api: 3, log: 4, state: 5 })
  expect([disks, nics]).toEqual([[6, 7], [8]])
  expect(new Map(given.fds)).toEqual(
    new Map([
      [40, 6],
      [41, 7],
      [42, 4],
      [43, 8],
      [44, 3],
    ]),
  )
})

test('nothing has two numbers, and no number two descriptors', () => {
  const given = new Inherited(numbered('only'))
  given.name('only', 9)
  for (let count = 0; count < 40; count++) given.list([100 + count])

  const numbers = given.fds.map(([, number]) => number)
  expect(new Set(numbers).size).toBe(41)
  expect(Math.min(...numbers)).toBe(3)
})
