import { afterEach, beforeEach, expect, test } from 'bun:test'
import { Fault } from '../../src/lib/fault.ts'
import { Tokens } from '../../src/system/tokens.ts'
import { testHost, type TestHost } from '../vm/host.ts'

let bed: TestHost
let tokens: Tokens
beforeEach(() => {
  bed = testHost()
  tokens = new Tokens(bed.host.store)
  for (const name of ['web', 'web-prod', '14']) tokens.create({ name })
})
afterEach(async () => {
  await bed[Symbol.asyncDispose]()
})

test('a token is found by its whole name', () => {
  expect(['web', 'web-prod', '14'].map((name) => tokens.get(name).name)).toEqual(['web', 'web-prod', '14'])
})

test.each(['we', 'WEB', 'web-', '1', ''])('a token is not deleted by %p', (name) => {
  let fault: unknown
  try {
    tokens.delete(name)
  } catch (error) {
    fault = error
  }

  expect(fault).toBeInstanceOf(Fault)
  expect((fault as Fault).code).toBe('token_not_found')
  expect(tokens.list()).toHaveLength(3)
})

test('a second delete does not take what begins so', () => {
  tokens.delete('web')

  expect(() => {
    tokens.delete('web')
  }).toThrow('Cannot find token "web"')
  expect(tokens.list().map((one) => one.name)).toEqual(['14', 'web-prod'])
})
