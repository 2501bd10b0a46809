import { expect, test } from 'bun:test'
import { newId, newName } from '../../src/lib/id.ts'

test('ids have the shape that the contract promises', () => {
  for (let i = 0; i < 1000; i++) expect(newId('vm')).toMatch(/^vm_[0-9a-z]{20}$/)
})

test('a hundred thousand ids are all different', () => {
  const now = Date.now()
  const ids = new Set(Array.from({ length: 100_000 }, () => newId('vm', now)))

  expect(ids.size).toBe(100_000)
})

test('ids sort by their time, from the first millisecond to the year 5138', () => {
  const times = [
    0,
    1,
    35,
    36,
    1_000_000,
    Date.UTC(2026, 10, 21),
    Date.UTC(2026, 10, 21) + 1,
    Date.UTC(2059, 0, 1),
    Date.UTC(5138, 0, 1),
  ]

  const ids = times.map((ms) => newId('vm', ms))

  expect([...ids].sort()).toEqual(ids)
})

test('names are DNS labels that a person can say', () => {
  for (let i = 0; i < 1000; i++) expect(newName()).toMatch(/^[a-z]+-[a-z]+-[0-9a-z]{3}$/)
})
