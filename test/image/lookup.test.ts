import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { Fault } from '../../src/lib/fault.ts'
import { imageNames, images } from '../../src/store/schema.ts'
import { testHost, type TestHost } from '../vm/host.ts'

const A = 'abcd11'.padEnd(64, '1')
const B = 'abcd22'.padEnd(64, '2')
const C = 'ffff33'.padEnd(64, '3')

let bed: TestHost
beforeEach(() => {
  bed = testHost()
  const { store } = bed.host
  const config = { entrypoint: [], cmd: [], env: [], user: '', working_dir: '', stop_signal: '', exposed_ports: [] }
  for (const hex of [A, B, C])
    store
      .insert(images)
      .values({
        digest: `sha256:${hex}`,
        format: 'x',
        erofsDigest: hex,
        sizeBytes: 1,
        config,
        status: 'ready',
        createdAt: 1,
      })
      .run()
  for (const [name, hex] of [
    ['a', A],
    ['b', A],
    ['c:1', A],
    ['web', B],
    ['web-prod', C],
    ['dead', C],
  ] as const)
    store
      .insert(imageNames)
      .values({ name, digest: `sha256:${hex}` })
      .run()
})
afterEach(async () => {
  await bed[Symbol.asyncDispose]()
})

const faultOf = (work: () => unknown): Fault | undefined => {
  try {
    work()
    return undefined
  } catch (error) {
    if (error instanceof Fault) return error
    throw error
  }
}
const names = () =>
  bed.host.images
    .list()
    .flatMap((image) => image.name ?? [])
    .filter((name) => name !== 'base')

describe('an image is found', () => {
  test.each([
    ['by its name', 'a', A],
    ['with the tag that is always there', 'a:latest', A],
    ['by a name that could be the beginning of a digest', 'dead', C],
    ['by its digest', `sha256:${B}`, B],
    ['by the digits alone', B, B],
    ['by the beginning of a digest', 'abcd2', B],
    ['by the shortest beginning', 'ffff', C],
    ['by a beginning with its kind before it', 'sha256:ffff3', C],
  ])('%s', (_, ref, hex) => {
    expect(bed.host.images.resolve(ref).digest).toBe(`sha256:${hex}`)
  })

  test.each([
    ['the beginning of a name', 'we', 'image_not_found', 'web'],
    ['a name in other letters', 'WEB', 'image_not_found', ''],
    ['a digest in other letters', 'ABCD2', 'image_not_found', ''],
    ['too short a beginning', 'fff', 'image_not_found', ''],
    ['nothing', '', 'image_not_found', ''],
    ['a beginning of two', 'abcd', 'image_ambiguous', 'sha256:abcd11'],
  ])('and not by %s', (_, ref, code, said) => {
    const fault = faultOf(() => bed.host.images.resolve(ref))

    expect(fault?.code).toBe(code)
    expect(`${fault?.message} ${fault?.hint}`).toContain(said)
  })
})

describe('a delete', () => {
  test('of a name with its tag takes that name and no other', () => {
    bed.host.images.delete('a:latest')

    expect(names()).toEqual(['b', 'c:1', 'dead', 'web', 'web-prod'])
  })

  test('of the last name takes the image, a second one nothing', () => {
    bed.host.images.delete('web')

    expect(faultOf(() => bed.host.images.delete('web'))).toMatchObject({
      code: 'image_not_found',
      hint: 'Did you mean "web-prod"?',
    })
    expect(faultOf(() => bed.host.images.resolve(B))?.code).toBe('image_not_found')
  })

  test.each(['ffff', 'ffff33333333', 'sha256:ffff3', 'abcd'])('does not take the beginning of a digest: %s', (ref) => {
    const before = names()

    const fault = faultOf(() => bed.host.images.delete(ref))

    expect(fault?.code).toBe('image_not_found')
    expect(fault?.hint).toStartWith('Did you mean "sha256:')
    expect(names()).toEqual(before)
  })

  test('of a whole digest takes the image with all its names', () => {
    bed.host.images.delete(`sha256:${A}`)

    expect(names()).toEqual(['dead', 'web', 'web-prod'])
  })
})
