import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { Glob } from 'bun'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { operations, COMMON_FAULTS, type Operation } from '../../src/contract/operations.ts'
import { openapi } from '../../src/http/openapi.ts'
import { clean, haveBinary, startDaemon, type Daemon } from '../e2e/daemon.ts'
import { ask, UPGRADE } from './http.ts'

const table: Readonly<Record<string, Operation>> = operations
const GOLDEN = join(import.meta.dir, '../golden/openapi.json')

/** The description without what each release changes. */
const said = (document: object): string =>
  `${JSON.stringify({ ...document, info: { ...(document as { info: object }).info, version: '0.0.0' } }, null, 1)}\n`

test('the description of the API is the golden one: a change of the API is a diff in review (UPDATE_GOLDEN=1 writes it anew)', () => {
  const now = said(JSON.parse(JSON.stringify(openapi('0.0.0'))) as object)
  if (process.env['UPDATE_GOLDEN'] === '1') writeFileSync(GOLDEN, now)

  expect(existsSync(GOLDEN)).toBe(true)
  expect(now).toBe(readFileSync(GOLDEN, 'utf8'))
})

describe('the description', () => {
  const document = JSON.parse(JSON.stringify(openapi('0.0.0'))) as {
    openapi: string
    paths: Record<
      string,
      Record<
        string,
        {
          operationId: string
          parameters: { name: string; in: string; required: boolean }[]
          requestBody?: { required: boolean }
          responses: object
        }
      >
    >
  }
  const entries = Object.entries(document.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({ path, method, ...operation })),
  )

  test('has every operation once', () => {
    expect(document.openapi).toBe('3.1.0')
    expect(entries.map((entry) => entry.operationId).sort()).toEqual(Object.keys(table).sort())
  })

  test('names every parameter that stands in a path', () => {
    for (const entry of entries) {
      const named = entry.parameters.filter((parameter) => parameter.in === 'path').map((parameter) => parameter.name)
      const there = [...entry.path.matchAll(/\{(\w+)\}/g)].map((match) => match[1])
      expect({ id: entry.operationId, named }).toEqual({ id: entry.operationId, named: there as string[] })
      for (const parameter of entry.parameters) if (parameter.in === 'path') expect(parameter.required).toBe(true)
    }
  })

  test('says which bodies may be left out', () => {
    const required = Object.fromEntries(
      entries.filter((entry) => entry.requestBody).map((entry) => [entry.operationId, entry.requestBody?.required]),
    )

    expect(required).toMatchObject({
      'vm.create': true,
      'vm.exec': true,
      'vm.start': false,
      'vm.stop': false,
      'vm.restart': false,
      'image.import': true,
      'token.create': true,
    })
  })
})

/** Every fault that is declared or made in the sources: `fault('code', 'kind'` and `new Fault('code', 'kind'`. */
const sources = [...new Glob('**/*.ts').scanSync(join(import.meta.dir, '../../src'))].map((file) => ({
  file,
  text: readFileSync(join(import.meta.dir, '../../src', file), 'utf8'),
}))
const declared = new Map<string, Set<string>>()
for (const { file, text } of sources) {
  for (const [, code = '', kind = ''] of text.matchAll(/\b(?:fault|new Fault)\(\s*'([a-z_]+)',\s*'([a-z_]+)'/g))
    declared.set(code, (declared.get(code) ?? new Set()).add(`${kind} ${file}`))
}

/**
 * What ends a daemon or a command before there is an operation, or is the client's own word: no answer of the API
 * carries it.
 */
const ELSEWHERE = /^(cli|client)\/|^(config|daemon)\.ts$/
/** Codes that stay below an operation: another one is answered in their place, for the reason given. */
const WITHIN: Readonly<Record<string, string>> = {
  machine_failed: 'a boot that fails is vm_start_failed, with this as its cause',
  guest_silent: 'its sentence is the reason of vm_start_failed',
  listen_refused: 'ends the daemon before it serves',
  address_taken: 'ends the daemon before it serves',
  state_newer: 'ends the daemon before it serves',
  home_missing: 'ends the daemon, or the command, before there is an operation',
}

describe('the faults of the operations', () => {
  const listed = new Set([...Object.values(table).flatMap((operation) => operation.faults), ...COMMON_FAULTS])

  test('are all declared', () => {
    expect([...listed].filter((code) => !declared.has(code))).toEqual([])
  })

  test('are all that the daemon declares, but for those that no answer carries', () => {
    const missing = [...declared].filter(
      ([code, places]) =>
        !listed.has(code) &&
        !(code in WITHIN) &&
        [...places].some((place) => !ELSEWHERE.test(place.split(' ')[1] ?? '')),
    )

    expect(missing.map(([code, places]) => `${code}: ${[...places].join(', ')}`)).toEqual([])
    expect(Object.keys(WITHIN).filter((code) => !declared.has(code) || listed.has(code))).toEqual([])
  })

  test('have one kind each, wherever they are made', () => {
    const twofold = [...declared].filter(
      ([, places]) =>
        new Set(
          [...places].filter((place) => !ELSEWHERE.test(place.split(' ')[1] ?? '')).map((place) => place.split(' ')[0]),
        ).size > 1,
    )

    expect(twofold.map(([code, places]) => `${code}: ${[...places].join(', ')}`)).toEqual([])
  })

  test('of one operation are listed once', () => {
    for (const [id, { faults }] of Object.entries(table))
      expect({ id, faults: [...new Set(faults)] }).toEqual({ id, faults: [...faults] })
  })

  test('are named by what the verbs say they throw', () => {
    const promised = sources
      .filter(({ file }) => /^(vm|image|kernel|system)\//.test(file))
      .flatMap(({ file, text }) =>
        [...text.matchAll(/@throws ([^\n]*)/g)].flatMap(([, line = '']) =>
          [...line.matchAll(/`([a-z]+_[a-z_]*[a-z])`/g)].map(([, code = '']) => `${code} ${file}`),
        ),
      )

    expect(promised.length).toBeGreaterThan(40)
    expect(promised.filter((one) => !declared.has(one.split(' ')[0] ?? ''))).toEqual([])
  })
})

describe.skipIf(!haveBinary)('a daemon', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon({ fake: true })
  })
  afterAll(async () => {
    await clean(daemon)
  })

  test('answers with the golden description', async () => {
    const answer = await ask({ socketPath: daemon.socket }, { path: '/openapi' })

    expect(answer.headers['content-type']).toBe('application/json')
    expect(said(answer.json)).toBe(readFileSync(GOLDEN, 'utf8'))
  })

  test('has a route for every operation', async () => {
    const without: string[] = []
    for (const [id, operation] of Object.entries(table)) {
      const path = operation.path.replace(':name', 'nothing-here').replace('*', 'x')
      const { status, json } = await ask(
        { socketPath: daemon.socket },
        { method: operation.method, path, ...(operation.stream === 'websocket' ? { headers: UPGRADE } : {}) },
      )
      if (json['code'] === 'route_not_found' || status === 405 || status >= 500)
        without.push(`${id}: ${status} ${String(json['code'])}`)
    }

    expect(without).toEqual([])
  })

  test('answers each failure with a code that its operation lists', async () => {
    for (const [id, operation] of Object.entries(table)) {
      const path = operation.path.replace(':name', 'nothing-here').replace('*', 'x')
      const { status, json } = await ask(
        { socketPath: daemon.socket },
        { method: operation.method, path, ...(operation.stream === 'websocket' ? { headers: UPGRADE } : {}) },
      )
      if (status >= 400)
        expect({
          id,
          code: json['code'],
          listed: [...operation.faults, ...COMMON_FAULTS].includes(String(json['code'])),
        }).toMatchObject({ id, listed: true })
    }
  })
})
