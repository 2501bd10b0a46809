import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { Fault } from '../../src/lib/fault.ts'
import { kernels } from '../../src/store/schema.ts'
import { testHost, type TestHost } from '../vm/host.ts'

const A = 'abcd11'.padEnd(64, '1')
const B = 'abcd22'.padEnd(64, '2')
const C = 'ffff33'.padEnd(64, '3')

let bed: TestHost
beforeEach(() => {
  bed = testHost()
  for (const [hex, name, version] of [
    [A, 'fast', '6.12.1'],
    [B, 'fast-old', '6.12.1'],
    [C, 'debian', '6.1.0'],
  ] as const)
    bed.host.store
      .insert(kernels)
      .values({ digest: `sha256:${hex}`, name, version, format: 'vmlinux', modules: [], sizeBytes: 1, createdAt: 1 })
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

describe('a kernel is found', () => {
  test.each([
    ['by its name', 'fast', A],
    ['by a version that one has', '6.1.0', C],
    ['by its digest', `sha256:${B}`, B],
    ['by the digits alone', B, B],
    ['by the beginning of a digest', 'abcd2', B],
  ])('%s', (_, ref, hex) => {
    expect(bed.host.kernels.resolve(ref).digest).toBe(`sha256:${hex}`)
  })

  test.each([
    ['the beginning of a name', 'fas', 'kernel_not_found'],
    ['too short a beginning', 'fff', 'kernel_not_found'],
    ['a beginning of two', 'abcd', 'kernel_ambiguous'],
    ['a version that two have', '6.12.1', 'kernel_ambiguous'],
    ['other letters', 'FFFF', 'kernel_not_found'],
  ])('and not by %s', (_, ref, code) => {
    expect(faultOf(() => bed.host.kernels.resolve(ref))?.code).toBe(code)
  })

  test.each(['ffff', 'ffff3333', 'fas', 'abcd'])('to be deleted by what is exact alone, not by %s', (ref) => {
    const fault = faultOf(() => bed.host.kernels.delete(ref))

    expect(fault?.code).toBe('kernel_not_found')
    expect(fault?.hint).toContain('Did you mean ')
    expect(bed.host.kernels.list().filter((one) => one.size_bytes === 1)).toHaveLength(3)
  })
})
