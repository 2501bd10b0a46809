import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import type { VmListQuery } from '../../../src/contract/vm.ts'
import { byUid, find } from '../../../src/vm/row/lookup.ts'
import { list } from '../../../src/vm/row/list.ts'
import { move } from '../../../src/vm/row/moves.ts'
import { view } from '../../../src/vm/row/view.ts'
import { snapshots } from '../../../src/store/schema.ts'
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
})

const UID = 'vm_0mabcdef0aaaaaaaaaaa'
const UID_NEAR = 'vm_0mabcdef0bbbbbbbbbbb'
const UID_FAR = 'vm_0nxxxxxx0ccccccccccc'

describe('a vm is found', () => {
  beforeEach(() => {
    bed.vm('web', { id: 7, uid: UID })
    bed.vm('web-prod', { id: 8, uid: UID_NEAR })
    bed.vm('7', { id: 14, uid: UID_FAR }) // of an older release: such names are not given any more
  })

  test.each([
    ['its uid', UID, 'web'],
    ['its name', 'web', 'web'],
    ['its number', '8', 'web-prod'],
    ['its name before the number of another', '7', '7'],
    ['its number where no name is that', '14', '7'],
  ])('by %s, whatever is done with it', (_, ref, name) => {
    expect([find(bed.host.store, ref, 'read').name, find(bed.host.store, ref).name]).toEqual([name, name])
  })

  test.each([
    ['four characters', 'vm_0nxx', '7'],
    ['all but one', UID.slice(0, -1), 'web'],
    ['as many as tell it apart', UID_NEAR.slice(0, 13), 'web-prod'],
  ])('by the beginning of its uid, to be read alone: %s', (_, ref, name) => {
    expect(find(bed.host.store, ref, 'read').name).toBe(name)
    expect(codeOf(() => find(bed.host.store, ref))).toMatchObject({
      code: 'vm_not_found',
      hint: `Did you mean "${name}"?`,
    })
  })

  test.each([
    ['what all uids begin with', 'vm'],
    ['what all uids begin with, whole', 'vm_'],
    ['three characters', 'vm_0nx'],
    ['other letters', UID.toUpperCase()],
    ['a beginning in other letters', 'VM_0NXX'],
    ['a name in other letters', 'WEB'],
    ['the end of a uid', UID.slice(4)],
    ['nothing', ''],
  ])('but not by %s', (_, ref) => {
    for (const use of ['read', 'change'] as const)
      expect(codeOf(() => find(bed.host.store, ref, use))).toMatchObject({ code: 'vm_not_found' })
  })

  test('and not by the beginning of a name, which is asked back', () => {
    for (const use of ['read', 'change'] as const)
      expect(codeOf(() => find(bed.host.store, 'we', use))).toMatchObject({
        code: 'vm_not_found',
        hint: 'Did you mean "web" or "web-prod"?',
      })
  })

  test('not by a beginning that fits two: both are named', () => {
    expect(codeOf(() => find(bed.host.store, 'vm_0mab', 'read'))).toMatchObject({
      code: 'vm_ambiguous',
      kind: 'conflict',
      data: { matches: ['web', 'web-prod'] },
    })
  })
})

describe('a vm is found', () => {
  test('by nothing that only looks like a pattern', () => {
    bed.vm('web-1')

    for (const ref of ['%', '_', 'w%', 'web_1', '\\', 'eb-1', '0', '01', '99', '1e0', "' OR 1=1 --"]) {
      expect({ ref, error: codeOf(() => find(bed.host.store, ref)) }).toMatchObject({
        ref,
        error: { code: 'vm_not_found', kind: 'not_found', hint: expect.stringContaining('aerie ps') as string },
      })
    }
  })
})

describe('a move', () => {
  test('changes state, counts on, clears the last reason and says so in the log of events', () => {
    const { uid, gen } = bed.vm('web', { state: 'unknown', statusMessage: 'its VMM does not answer' })

    const moved = move(bed.host.store, uid, 'found')

    expect(moved).toMatchObject({ state: 'running', gen: gen + 1, statusMessage: null })
    expect(moved.updatedAt).toBeGreaterThan(1000)
    expect(bed.events.after(0, 10)).toMatchObject([{ type: 'VM_RUNNING', name: 'web', uid, status: 'running' }])
  })

  test('that the table does not have changes nothing', () => {
    const { uid } = bed.vm('web', { state: 'stopped' })
    const before = byUid(bed.host.store, uid)

    expect(codeOf(() => move(bed.host.store, uid, 'pause'))).toMatchObject({
      code: 'vm_wrong_state',
      message: 'Cannot pause vm "web": it is stopped',
    })
    expect(byUid(bed.host.store, uid)).toEqual(before as NonNullable<typeof before>)
    expect(bed.events.newest()).toBe(0)
  })

  test('of a vm that has gone is no move', () => {
    expect(codeOf(() => move(bed.host.store, 'vm_none', 'stop'))).toMatchObject({
      code: 'vm_not_found',
    })
  })

  test('of two callers lets one through', () => {
    const { uid } = bed.vm('web')
    move(bed.host.store, uid, 'stop')

    expect(codeOf(() => move(bed.host.store, uid, 'stop'))).toMatchObject({ code: 'vm_wrong_state' })
    expect(bed.events.newest()).toBe(1)
  })
})

test('the view of a vm shows the names of its environment and no value', () => {
  const row = bed.vm('web', {}, { env: { TOKEN: 's3cret', A: 'b' }, cmd: ['x'] })

  expect(view(row)).toMatchObject({
    env_names: ['TOKEN', 'A'],
    cmd: ['x'],
    entrypoint: null,
    pid: null,
    serial_socket: '',
    status: 'running',
    started_at: null,
  })
  expect(JSON.stringify(view(row))).not.toContain('s3cret')
})

test("a boot after a restore that was never acknowledged waits for nobody's identity", () => {
  bed.host.store.insert(snapshots).values({ id: 'snap_x', sourceUid: 'vm_x', createdAt: 0 }).run()
  const { uid } = bed.vm('woken', { state: 'crashed', snapshot: 'snap_x', boot: { identityDue: true, exitCode: 3 } })

  expect(move(bed.host.store, uid, 'start', { newBoot: {} })).toMatchObject({
    state: 'starting',
    snapshot: null,
    boot: { identityDue: false, exitCode: null },
  })
})
