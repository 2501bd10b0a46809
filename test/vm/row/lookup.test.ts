import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { find } from '../../../src/vm/row/lookup.ts'
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
