import { expect, test } from 'bun:test'
import { sse } from '../../src/http/answer.ts'
import { faultOrInternal, problem } from '../../src/http/problem.ts'
import { Fault, type FaultKind } from '../../src/lib/fault.ts'
import { newLog } from '../../src/lib/log.ts'

const log = newLog('silent')

test('each kind of fault has its status, and what a client does with it', async () => {
  const statuses: Record<FaultKind, number> = {
    invalid: 400,
    unauthorized: 401,
    forbidden: 403,
    not_found: 404,
    conflict: 409,
    exhausted: 507,
    unavailable: 503,
    timeout: 504,
    internal: 500,
    gateway: 502,
  }
  for (const [kind, status] of Object.entries(statuses)) {
    const answer = problem(
      new Fault('some_code', kind as FaultKind, 'Cannot do it', { name: 'x' }, { hint: 'Do another' }),
      'r-1',
      log,
    )

    expect({
      kind,
      status: answer.status,
      retry: answer.headers.get('retry-after'),
      ask: answer.headers.get('www-authenticate'),
    }).toEqual({
      kind,
      status,
      retry: status === 503 ? '1' : null,
      ask: status === 401 ? 'Bearer realm="aerie"' : null,
    })
    expect(await answer.json()).toEqual({
      name: 'x',
      type: 'urn:aerie:fault:some_code',
      title: 'Cannot do it',
      status,
      error: 'Cannot do it',
      code: 'some_code',
      hint: 'Do another',
      request_id: 'r-1',
    })
  }
})

test('data of a fault never takes the place of what a problem is', async () => {
  const answer = problem(
    new Fault('vm_wrong_state', 'conflict', 'Cannot', {
      status: 'running',
      code: 'mine',
      title: 'mine',
      type: 'mine',
      error: 'mine',
      request_id: 'mine',
    }),
    'r-1',
    log,
  )

  expect(await answer.json()).toMatchObject({
    status: 409,
    code: 'vm_wrong_state',
    title: 'Cannot',
    type: 'urn:aerie:fault:vm_wrong_state',
    error: 'Cannot',
    request_id: 'r-1',
  })
})

test('what is no fault is internal, and says nothing of its reason', async () => {
  for (const thrown of [new Error('open "/var/lib/aerie/secret": EACCES'), 'a word', undefined, { code: 'ENOENT' }]) {
    const text = await problem(faultOrInternal(thrown), 'r-1', log).text()

    expect(text).toContain('"code":"internal"')
    expect(text).not.toContain('secret')
    expect(text).not.toContain('EACCES')
  }
})

test('a stream of events begins at once, and its source is let go with its reader', async () => {
  let ended = false
  const gone = new AbortController()
  async function* items() {
    try {
      yield 1
      yield 2
      await new Promise((resolve) => {
        gone.signal.addEventListener('abort', resolve)
      })
    } finally {
      ended = true
    }
  }
  const answer = sse(items(), gone.signal, (item) => ({ id: item, event: 'N', data: { item } }))
  const reader = (answer.body as ReadableStream<Uint8Array>).getReader()
  const next = async () => Buffer.from((await reader.read()).value ?? []).toString('utf8')

  expect([await next(), await next(), await next()]).toEqual([
    ': aerie\n\n',
    'id: 1\nevent: N\ndata: {"item":1}\n\n',
    'id: 2\nevent: N\ndata: {"item":2}\n\n',
  ])
  gone.abort()
  await reader.cancel().catch(() => undefined)
  await Bun.sleep(5)
  expect(ended).toBe(true)
})

test('a disk without room is told as such, however deep the error lies, and no other error is', () => {
  const system = (code: string) => Object.assign(new Error(`${code}: it failed`), { code })
  const full = [
    system('ENOSPC'),
    system('EDQUOT'),
    system('SQLITE_FULL'),
    system('SQLITE_IOERR_SHMSIZE'),
    new Error('Cannot write the row', { cause: new Error('database or disk is full') }),
    new Error('outer', { cause: new Error('inner', { cause: system('EDQUOT') }) }),
  ]
  const others = [system('EACCES'), system('SQLITE_CORRUPT'), new Error('no room here'), 'ENOSPC', undefined]

  expect(full.map((error) => faultOrInternal(error).code)).toEqual(full.map(() => 'disk_exhausted'))
  expect(others.map((error) => faultOrInternal(error).code)).toEqual(others.map(() => 'internal'))
})
