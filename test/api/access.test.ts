import { Database } from 'bun:sqlite'
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { operations } from '../../src/contract/operations.ts'
import { clean, createVm, haveBinary, seedFake, startDaemon, until, type Daemon } from '../e2e/daemon.ts'
import { ask, portOf, UPGRADE, type Answer, type Ask, type Target } from './http.ts'

/** Who may do what: the compiled file, over TCP and over its Unix socket. */
describe.skipIf(!haveBinary)('access', () => {
  let daemon: Daemon
  let tcp: Target
  const secrets = { read: '', exec: '', admin: '' }

  beforeAll(async () => {
    daemon = await startDaemon({ fake: true, flags: ['--listen', '127.0.0.1:0'] })
    await until(() => daemon.log().includes('aerie serves'))
    tcp = { host: '127.0.0.1', port: portOf(daemon) }
    for (const scope of ['read', 'exec', 'admin'] as const)
      secrets[scope] = (await daemon.client.call('token.create', { body: { name: scope, scope } })).secret
    await seedFake(daemon)
    await createVm(daemon, { name: 'v', cmd: ['sleep', '1000'], port: 80 })
  }, 30_000)
  afterAll(async () => {
    await clean(daemon)
  })

  const asks = (request: Ask, secret?: string): Promise<Answer> =>
    ask(tcp, {
      ...request,
      headers: { ...(secret === undefined ? {} : { authorization: `Bearer ${secret}` }), ...request.headers },
    })
  const LIST: Ask = { path: '/api/v1/vms' }
  const EXEC: Ask = { method: 'POST', path: '/api/v1/vms/v/exec', body: '{"argv":["true"]}' }
  const CREATE: Ask = { method: 'POST', path: '/api/v1/vms', body: '{"name":"BAD NAME"}' }

  describe('a request over TCP', () => {
    test('without a token is refused, and told how to have one', async () => {
      const answer = await asks(LIST)

      expect(answer).toMatchObject({
        status: 401,
        json: { code: 'token_missing', hint: expect.stringContaining('aerie token create') as string },
      })
      expect(answer.headers['www-authenticate']).toStartWith('Bearer')
      expect(answer.headers['content-type']).toBe('application/problem+json')
    })

    for (const [what, headers] of [
      ['an unknown token', { authorization: 'Bearer aerie_nothing' }],
      ['an empty one', { authorization: 'Bearer ' }],
      ['another scheme', { authorization: 'Basic YTpi' }],
      ['a token without a scheme', { authorization: 'aerie_nothing' }],
      ['a key that is none', { 'x-volant-api-key': 'nothing' }],
    ] as const) {
      test(`with ${what} is refused`, async () => {
        expect((await asks({ ...LIST, headers })).status).toBe(401)
      })
    }

    test('with its token in either header is let through', async () => {
      expect((await asks(LIST, secrets.read)).status).toBe(200)
      expect((await asks({ ...LIST, headers: { authorization: `bearer ${secrets.read}` } })).status).toBe(200)
      expect((await asks({ ...LIST, headers: { 'X-Volant-API-Key': secrets.read } })).status).toBe(200)
    })

    test('with its token in the address or in a cookie is refused: both end where others read', async () => {
      for (const name of ['token', 'access_token', 'api_key', 'authorization', 'x-volant-api-key']) {
        expect(await asks({ path: `/api/v1/vms?${name}=${secrets.admin}` })).toMatchObject({
          status: 401,
          json: { code: 'token_missing' },
        })
      }
      expect((await asks({ ...LIST, headers: { cookie: `token=${secrets.admin}` } })).status).toBe(401)
    })

    test('with a part of a token, or more than it, is refused', async () => {
      for (const wrong of [
        secrets.admin.slice(0, -1),
        `${secrets.admin}x`,
        secrets.admin.toUpperCase(),
        secrets.admin.slice('aerie_'.length),
      ])
        expect((await asks(LIST, wrong)).status).toBe(401)
    })

    test("for the daemon's health needs none", async () => {
      expect(await asks({ path: '/healthz' })).toMatchObject({ status: 200, json: { status: 'ok' } })
    })

    test('for anything else does, what there is and what there is not', async () => {
      for (const path of [
        '/',
        '/openapi',
        '/api/v1/system/info',
        '/api/v1/nothing',
        '/healthz/',
        '/healthz/x',
        '//healthz',
        '/HEALTHZ',
      ])
        expect({ path, status: (await asks({ path })).status }).toEqual({ path, status: 401 })
      expect((await asks({ method: 'POST', path: '/healthz' })).status).toBe(401)
    })
  })

  describe('a token', () => {
    test('for reading reads, and does no more', async () => {
      expect((await asks(LIST, secrets.read)).status).toBe(200)
      expect(await asks(EXEC, secrets.read)).toMatchObject({
        status: 403,
        json: { code: 'token_scope', has: 'read', needs: 'exec' },
      })
      expect(await asks(CREATE, secrets.read)).toMatchObject({
        status: 403,
        json: { code: 'token_scope', needs: 'admin' },
      })
    })

    test('for executing executes, and makes nothing', async () => {
      expect(await asks(EXEC, secrets.exec)).toMatchObject({ status: 200, json: { exit_code: 0 } })
      expect((await asks(LIST, secrets.exec)).status).toBe(200)
      expect((await asks(CREATE, secrets.exec)).status).toBe(403)
      expect((await asks({ path: '/api/v1/tokens' }, secrets.exec)).status).toBe(403)
    })

    test('for everything is asked for its request: one that is bad is bad, not forbidden', async () => {
      expect((await asks(CREATE, secrets.admin)).status).toBe(400)
    })

    test('has its scope checked before anything of the request is read', async () => {
      expect((await asks({ method: 'POST', path: '/api/v1/vms', body: 'no json' }, secrets.read)).status).toBe(403)
      expect((await asks({ method: 'DELETE', path: '/api/v1/vms/nothing-here' }, secrets.read)).status).toBe(403)
    })

    test('is asked for by every operation as the contract says', async () => {
      const rank = { read: 0, exec: 1, admin: 2 }
      const wrong: string[] = []
      for (const [id, operation] of Object.entries(operations)) {
        const path = operation.path.replace(':name', 'no-such-thing').replace('*', 'x')
        for (const scope of ['read', 'exec'] as const) {
          if (rank[scope] >= rank[operation.scope]) continue
          const { status, json } = await asks(
            {
              method: operation.method,
              path,
              headers: 'stream' in operation && operation.stream === 'websocket' ? UPGRADE : {},
            },
            secrets[scope],
          )
          if (status !== 403 || json['code'] !== 'token_scope') wrong.push(`${id} with ${scope}: ${status}`)
        }
      }

      expect(wrong).toEqual([])
    })

    test('is not got round by another spelling of a path', async () => {
      const before = (await daemon.client.call('vm.get', { params: { name: 'v' } })).gen
      const wrong: string[] = []
      for (const spell of [
        (path: string) => `${path}/`,
        (path: string) => `${path}//`,
        (path: string) => `/.${path}`,
        (path: string) => `/${path}`,
        (path: string) => path.replace('/vms/', '//vms/'),
        (path: string) => path.replace('vms', '%76ms'),
        (path: string) => path.toUpperCase(),
        (path: string) => `${path};x`,
        (path: string) => `${path}%20`,
        (path: string) => `http://127.0.0.1${path}/`,
        (path: string) => path.replace('/v', '/../vms/v'),
        (path: string) => `${path}/.`,
        (path: string) => `${path}?/`,
      ]) {
        for (const [method, path] of [
          ['DELETE', '/api/v1/vms/v'],
          ['POST', '/api/v1/vms/v/exec'],
          ['POST', '/api/v1/vms/v/stop'],
          ['GET', '/api/v1/tokens'],
        ] as const) {
          const { status } = await asks(
            { method, path: spell(path), ...(method === 'POST' ? { body: '{"argv":["true"]}' } : {}) },
            secrets.read,
          )
          if (status < 400) wrong.push(`${method} ${spell(path)}: ${status}`)
        }
      }

      expect(wrong).toEqual([])
      expect((await daemon.client.call('vm.get', { params: { name: 'v' } })).gen).toBe(before)
    })

    test('that is revoked is no token any more', async () => {
      const { secret } = await daemon.client.call('token.create', { body: { name: 'short', scope: 'read' } })
      expect((await asks(LIST, secret)).status).toBe(200)

      await daemon.client.call('token.delete', { params: { name: 'short' } })

      expect(await asks(LIST, secret)).toMatchObject({ status: 401, json: { code: 'token_invalid' } })
    })

    test('that has expired is none either', async () => {
      const { secret, expires_at: expires } = await daemon.client.call('token.create', {
        body: { name: 'dated', scope: 'read', expires_in_s: 60 },
      })
      expect(Date.parse(expires ?? '') - Date.now()).toBeGreaterThan(50_000)
      expect((await asks(LIST, secret)).status).toBe(200)

      const state = new Database(join(daemon.state, 'state.db'))
      state.run('PRAGMA busy_timeout = 5000')
      state.run(`UPDATE tokens SET expires_at = ${Date.now() - 1} WHERE name = 'dated'`) // a minute is too long for a test
      state.close()

      expect(await asks(LIST, secret)).toMatchObject({ status: 401, json: { code: 'token_invalid' } })
    })

    test('stands nowhere but in the answer that made it', async () => {
      const state = new Database(join(daemon.state, 'state.db'), { readonly: true })
      const rows = JSON.stringify(state.query('SELECT * FROM tokens').all())
      state.close()

      for (const secret of Object.values(secrets)) {
        expect(rows).not.toContain(secret)
        expect(daemon.log()).not.toContain(secret)
        expect(readFileSync(join(daemon.state, 'state.db')).includes(secret)).toBe(false)
      }
      expect(JSON.stringify(await daemon.client.call('token.list', {}))).not.toContain(secrets.read)
    })

    test('has a name of its own', async () => {
      await expect(daemon.client.call('token.create', { body: { name: 'read' } })).rejects.toMatchObject({
        code: 'token_exists',
      })
    })
  })

  describe('a page of another site', () => {
    test('that has made its own name point here is refused, whatever it shows', async () => {
      for (const host of [
        'evil.example',
        `evil.example:${daemon.pid}`,
        '127.0.0.1.evil.example',
        'localhost.evil.example',
        '10.0.0.1',
        '0.0.0.0',
        '[::2]',
        '127.0.0.2',
      ]) {
        expect({ host, answer: await asks({ ...LIST, headers: { host } }, secrets.admin) }).toMatchObject({
          host,
          answer: { status: 403, json: { code: 'host_refused' } },
        })
      }
      expect((await asks({ path: '/healthz', headers: { host: 'evil.example' } })).status).toBe(403)
    })

    test('is refused by its origin', async () => {
      for (const origin of [
        'http://evil.example',
        'https://evil.example',
        'null',
        'http://127.0.0.1:1',
        'http://localhost',
        'file://',
      ]) {
        expect({ origin, answer: await asks({ ...LIST, headers: { origin } }, secrets.admin) }).toMatchObject({
          origin,
          answer: { status: 403, json: { code: 'origin_refused' } },
        })
      }
    })

    test("is told from the daemon's own", async () => {
      const { port } = tcp as { port: number }

      for (const host of [`127.0.0.1:${port}`, `localhost:${port}`, '127.0.0.1', 'LOCALHOST'])
        expect((await asks({ ...LIST, headers: { host } }, secrets.read)).status).toBe(200)
      expect(
        (
          await asks(
            { ...LIST, headers: { host: `127.0.0.1:${port}`, origin: `http://127.0.0.1:${port}` } },
            secrets.read,
          )
        ).status,
      ).toBe(200)
    })
  })

  describe('a WebSocket', () => {
    const SOCKETS = [
      '/api/v1/vms/v/exec',
      '/api/v1/vms/v/attach',
      '/api/v1/vms/v/forward?port=80',
      '/ws/v1/vms/v/console',
    ]
    for (const path of SOCKETS) {
      test(`at ${path} needs a token that may execute, and no page of another site`, async () => {
        const upgrade = (secret?: string, headers = {}) => asks({ path, headers: { ...UPGRADE, ...headers } }, secret)

        expect((await upgrade()).status).toBe(401)
        expect((await upgrade('aerie_nothing')).status).toBe(401)
        expect((await upgrade(secrets.read)).status).toBe(403)
        expect((await upgrade(secrets.exec, { origin: 'http://evil.example' })).status).toBe(403)
        expect((await upgrade(secrets.exec, { host: 'evil.example' })).status).toBe(403)
        expect((await upgrade(secrets.exec)).status).toBe(101)
      })
    }
  })

  test('a stream of events needs a token, and is let go with its reader', async () => {
    expect((await asks({ path: '/api/v1/events' })).status).toBe(401)
    expect(await asks({ path: '/api/v1/events' }, secrets.read)).toMatchObject({
      status: 200,
      text: expect.stringContaining(': aerie') as string,
    })
  })

  describe('the Unix socket', () => {
    test('asks for no token: its mode says who may', async () => {
      expect((await ask({ socketPath: daemon.socket }, LIST)).status).toBe(200)
      expect(statSync(daemon.socket).mode & 0o7777).toBe(0o660)
      expect(statSync(daemon.state).mode & 0o7777).toBe(0o700)
    })

    test('takes any host: a page cannot reach it', async () => {
      expect((await ask({ socketPath: daemon.socket }, { ...LIST, headers: { host: 'anything' } })).status).toBe(200)
    })
  })

  test('every answer has the number of its request, a given one where it is sane', async () => {
    expect((await asks(LIST, secrets.read)).headers['x-request-id']).toMatch(/^[0-9a-f-]{36}$/)
    expect((await asks({ ...LIST, headers: { 'x-request-id': 'mine-1' } }, secrets.read)).headers['x-request-id']).toBe(
      'mine-1',
    )
    expect(
      (await asks({ ...LIST, headers: { 'x-request-id': 'x y'.repeat(50) } }, secrets.read)).headers['x-request-id'],
    ).toMatch(/^[0-9a-f-]{36}$/)
    const refused = await asks({ ...LIST, headers: { 'x-request-id': 'mine-2' } })
    expect([refused.headers['x-request-id'], refused.json['request_id']]).toEqual(['mine-2', 'mine-2'])
  })
})

describe.skipIf(!haveBinary)('an address', () => {
  const refused = async (flags: readonly string[]): Promise<{ code: number; log: string }> => {
    const daemon = await startDaemon({ fake: true, flags, mayFail: true })
    try {
      return { code: await daemon.exited, log: await daemon.said }
    } finally {
      await clean(daemon)
    }
  }

  for (const listen of ['0.0.0.0:0', '192.0.2.1:7777', '[::]:0', 'example.com:7777', ':7777']) {
    test(`such as ${listen} is refused without TLS`, async () => {
      const { code, log } = await refused(['--listen', listen])

      expect(code).toBe(2)
      expect(log).toContain(`Cannot listen on "${listen}": it is not the loopback`)
      expect(log).toContain('--listen-insecure')
    })
  }

  test('that is none is refused', async () => {
    for (const listen of ['127.0.0.1', '127.0.0.1:99999', '127.0.0.1:http', '127.0.0.1:']) {
      const { code, log } = await refused(['--listen', listen])

      expect({ listen, code }).toEqual({ listen, code: 2 })
      expect(log).toContain(`"${listen}"`)
    }
  })

  test('that somebody has already is a conflict', async () => {
    const other = Bun.listen({ hostname: '127.0.0.1', port: 0, socket: { data: () => undefined } })
    try {
      const { code, log } = await refused(['--listen', `127.0.0.1:${other.port}`])

      expect(code).toBe(5)
      expect(log).toContain('somebody does already')
    } finally {
      other.stop(true)
    }
  })

  test('beside the loopback is taken where a person insists, and still needs a token', async () => {
    const daemon = await startDaemon({ fake: true, flags: ['--listen', '0.0.0.0:0', '--listen-insecure'] })
    try {
      await until(() => daemon.log().includes('aerie serves'))
      const port = Number(/http:\/\/0\.0\.0\.0:(\d+)/.exec(daemon.log())?.[1])

      expect(await ask({ host: '127.0.0.1', port }, { path: '/api/v1/vms' })).toMatchObject({ status: 401 })
    } finally {
      await clean(daemon)
    }
  }, 20_000)
})
