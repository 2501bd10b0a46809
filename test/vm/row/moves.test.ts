import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { byUid } from '../../../src/vm/row/lookup.ts'
import { move } from '../../../src/vm/row/moves.ts'
import { snapshots } from '../../../src/store/schema.ts'
import { testHost, type TestHost } from '../host.ts'

let bed: TestHost
beforeEach(() => {
  bed = testHost()
})
afterEach(async () => {
  await bed[Symbol.asyncDispose]()
})

const codeOf = (work: () => unknown): unknown => {
  try {
    work()
    return undefined
  } catch (error) {
    return error
  }
}

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

test("a boot after a restore that was never acknowledged waits for nobody's identity", () => {
  bed.host.store.insert(snapshots).values({ id: 'snap_x', sourceUid: 'vm_x', createdAt: 0 }).run()
  const { uid } = bed.vm('woken', { state: 'crashed', snapshot: 'snap_x', boot: { identityDue: true, exitCode: 3 } })

  expect(move(bed.host.store, uid, 'start', { newBoot: {} })).toMatchObject({
    state: 'starting',
    snapshot: null,
    boot: { identityDue: false, exitCode: null },
  })
})
