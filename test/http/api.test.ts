import { afterAll, beforeAll, expect, test } from 'bun:test'
import type { Operation } from '../../src/contract/operation.ts'
import { operations } from '../../src/contract/operations.ts'
import { api, type Api, type Edge } from '../../src/http/api.ts'
import { Tokens } from '../../src/system/tokens.ts'
import { testHost, type TestHost } from '../vm/host.ts'

let bed: TestHost
let served: Api
beforeAll(() => {
  bed = testHost()
  served = api(bed.host, new Tokens(bed.host.store))
})
afterAll(async () => {
  await bed[Symbol.asyncDispose]()
})

/** What one request was matched with, and what it was answered. */
const asked = async (method: string, path: string, body?: string): Promise<{ edge: Edge; answer: Response }> => {
  const edge: Edge = { listener: { kind: 'unix', hosts: new Set() }, requestId: 'r-1' }
  const answer = await served.fetch(
    new Request(`http://localhost${path}`, { method, ...(body === undefined ? {} : { body }) }),
    edge,
  )
  return { edge, answer }
}

test("a path is one operation's, or none's", async () => {
  for (const [id, operation] of Object.entries(operations as Readonly<Record<string, Operation>>)) {
    const { edge, answer } = await asked(operation.method, operation.path.replace(':name', 'a-b').replace('*', 'x/y'))
    await answer.body?.cancel()
    expect({ id, matched: edge.operation }).toEqual({ id, matched: operation })
  }
  for (const path of [
    '/api/v1/vms/',
    '/api/v1/vms/a/b',
    '/api/v1/vms/a/exec/',
    '/api/v1/vmsx',
    '/x/api/v1/vms',
    '/healthzz',
    '/api/v1/vms//exec',
    '/api/v1/vms/a/agent',
    '/',
  ]) {
    const { edge, answer } = await asked('GET', path)
    expect({ path, matched: edge.operation, status: answer.status }).toEqual({ path, matched: undefined, status: 404 })
  }
  for (const method of ['DELETE', 'HEAD', 'PATCH', 'OPTIONS'])
    expect((await asked(method, '/api/v1/vms/a/agent/x')).edge.operation).toBe(operations['vm.proxy'])
  expect((await asked('HEAD', '/api/v1/vms')).answer.status).toBe(404)
})

test('a bad answer of ours is not taken for a bad request', async () => {
  const query = (await asked('GET', '/api/v1/vms?limit=x')).answer
  expect(await query.json()).toMatchObject({ status: 400, code: 'request_invalid', errors: [{ path: 'limit' }] })

  const { list } = bed.host.images
  bed.host.images.list = () => {
    throw new TypeError('a defect')
  }
  try {
    const answer = (await asked('GET', '/api/v1/images')).answer
    expect(await answer.json()).toMatchObject({ status: 500, code: 'internal' })
  } finally {
    bed.host.images.list = list
  }
})

test('each wrong field is named once, and no more than eight of them', async () => {
  const { answer } = await asked('POST', '/api/v1/vms', JSON.stringify({ cpu_cores: 'x', memory_mb: 'y', tty: 1 }))
  const said = (await answer.json()) as { errors: { path: string }[] }

  expect(said.errors.map((one) => one.path).sort()).toEqual(['cpu_cores', 'memory_mb', 'tty'])
  const many = Object.fromEntries(Array.from({ length: 50 }, (_, index) => [`field${index}`, 1]))
  const named = (await (await asked('POST', '/api/v1/vms', JSON.stringify(many))).answer.json()) as { errors: object[] }
  expect(named.errors).toHaveLength(8)
})
