import { expect, test } from 'bun:test'
import { Type } from '@sinclair/typebox'
import { chain, fault, Fault } from '../../src/lib/fault.ts'

const full = fault(
  'disk_full',
  'exhausted',
  { path: Type.String(), mb: Type.Integer() },
  (d) => `Cannot write "${d.path}": ${d.mb} MiB are missing`,
  (d) => (d.mb > 10 ? 'Buy a disk' : undefined),
)

test('a declared fault has its code, its kind, its sentence, its data and its hint', () => {
  const cause = new Error('ENOSPC')
  const thrown = full({ path: '/x', mb: 11 }, cause)

  expect(thrown).toBeInstanceOf(Fault)
  expect({
    code: thrown.code,
    kind: thrown.kind,
    message: thrown.message,
    data: thrown.data,
    hint: thrown.hint,
    cause: thrown.cause,
  }).toEqual({
    code: 'disk_full',
    kind: 'exhausted',
    message: 'Cannot write "/x": 11 MiB are missing',
    data: { path: '/x', mb: 11 },
    hint: 'Buy a disk',
    cause,
  })
  expect(full({ path: '/x', mb: 1 }).hint).toBeUndefined()
  expect([full.code, full.kind]).toEqual(['disk_full', 'exhausted'])
})

test('a chain says every cause once, outermost first, whatever was thrown', () => {
  expect(chain(full({ path: '/x', mb: 1 }, new Error('write failed', { cause: 'ENOSPC' })))).toEqual([
    'Cannot write "/x": 1 MiB are missing',
    'write failed',
    'ENOSPC',
  ])
  expect(chain('a word')).toEqual(['a word'])
  expect(chain(undefined)).toEqual([])
})

test('a chain that bites its own tail ends', () => {
  const first = new Error('a')
  const second = new Error('b', { cause: first })
  first.cause = second

  expect(chain(first).length).toBe(16)
})
