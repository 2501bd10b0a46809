import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import type { VmListQuery } from '../../../src/contract/vm-list.ts'
import { list } from '../../../src/vm/row/list.ts'
import { testHost, type TestHost } from '../host.ts'

let bed: TestHost
beforeEach(() => {
  bed = testHost()
})
afterEach(async () => {
  await bed[Symbol.asyncDispose]()
})

const names = (query: VmListQuery = {}): string[] => list(bed.host.store, query).vms.map((vm) => vm.name)
const codeOf = (work: () => unknown): unknown => {
  try {
    work()
    return undefined
  } catch (error) {
    return error
  }
}

describe('a list', () => {
  beforeEach(() => {
    bed.vm('web-1', { state: 'running', createdAt: 5 }, { metadata: { team: 'red', 'a.b/c': 'x' } })
    bed.vm(
      'web-2',
      { state: 'stopped', createdAt: 4, runtime: 'nginx', plugin: 'nginx' },
      { metadata: { team: 'blue' } },
    )
    bed.vm('db', { state: 'running', createdAt: 3 }, { metadata: { team: 'red', tier: '1=2' } })
    bed.vm('cache_1', { state: 'crashed', createdAt: 2 })
  })

  const CASES: readonly (readonly [string, VmListQuery, string[]])[] = [
    ['has all by their id', {}, ['web-1', 'web-2', 'db', 'cache_1']],
    ['of one state', { status: 'running' }, ['web-1', 'db']],
    ['of some states', { status: 'stopped,crashed' }, ['web-2', 'cache_1']],
    ['of a runtime', { runtime: 'nginx' }, ['web-2']],
    ['of a plugin', { plugin: 'nginx' }, ['web-2']],
    ['of a plugin that no vm has', { plugin: 'none' }, []],
    ['of a part of the name', { q: 'web' }, ['web-1', 'web-2']],
    ['of a part in the middle', { q: 'b-' }, ['web-1', 'web-2']],
    ['of a metadata pair', { metadata: 'team=red' }, ['web-1', 'db']],
    ['of pairs that all match', { metadata: ['team=red', 'tier=1=2'] }, ['db']],
    ['of a key with dots and slashes', { metadata: 'a.b/c=x' }, ['web-1']],
    ['of a pair that nobody has', { metadata: 'team=green' }, []],
    ['of an empty value', { metadata: 'team=' }, []],
    ['of all at once', { status: 'running', q: 'web', metadata: 'team=red' }, ['web-1']],
    ['sorted by name', { sort: 'name' }, ['cache_1', 'db', 'web-1', 'web-2']],
    ['sorted by name, downwards', { sort: 'name', order: 'desc' }, ['web-2', 'web-1', 'db', 'cache_1']],
    ['sorted by time', { sort: 'created_at' }, ['cache_1', 'db', 'web-2', 'web-1']],
    ['sorted by state, then by id', { sort: 'status' }, ['cache_1', 'web-1', 'db', 'web-2']],
    ['in pages', { sort: 'name', limit: 2, offset: 1 }, ['db', 'web-1']],
    ['beyond its end', { limit: 2, offset: 9 }, []],
    ['without a limit from a place on', { offset: 3 }, ['cache_1']],
    ['where a % is a letter', { q: '%' }, []],
    ['where a _ is a letter', { q: 'e_1' }, ['cache_1']],
  ]
  for (const [name, query, expected] of CASES)
    test(name, () => {
      expect(names(query)).toEqual(expected)
    })

  test('says how many there are, whatever page it shows', () => {
    const total = (query: VmListQuery) => list(bed.host.store, query).total

    expect([
      total({}),
      total({ limit: 1 }),
      total({ offset: 3 }),
      total({ limit: 2, offset: 9 }),
      total({ status: 'running', limit: 1 }),
      total({ q: 'none' }),
    ]).toEqual([4, 4, 4, 4, 2, 0])
  })

  test('refuses a filter that can never match, by its name', () => {
    for (const [query, filter] of [
      [{ status: 'running,asleep' }, 'status'],
      [{ metadata: 'team' }, 'metadata'],
      [{ metadata: '=x' }, 'metadata'],
    ] as const) {
      expect(codeOf(() => list(bed.host.store, query))).toMatchObject({
        code: 'filter_invalid',
        kind: 'invalid',
        data: { filter },
      })
    }
  })

  test('is not led astray by what a filter holds', () => {
    for (const metadata of ['team" OR 1=1 --=x', "team'=x", 'a\\=x', '$.x=y', '"=x'])
      expect(names({ metadata })).toEqual([])
    expect(names({ q: "'; DROP TABLE vms; --" })).toEqual([])
    expect(names().length).toBe(4)
  })
})

test('a list of more than a thousand is cut, and says how many there are', () => {
  bed.host.store.$client
    .transaction(() => {
      for (let i = 0; i < 1005; i++) bed.vm(`vm-${i}`)
    })
    .immediate()

  const { vms, total } = list(bed.host.store, {})

  expect([vms.length, total]).toEqual([1000, 1005])
}, 20_000)
