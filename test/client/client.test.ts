import { describe, expect, test } from 'bun:test'
import { connect } from '../../src/client/client.ts'
import { Fault } from '../../src/lib/fault.ts'
import { FakeDaemon, WINDOW } from './daemon.ts'

const fails = async (promise: Promise<unknown>): Promise<Fault> => {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (!(error instanceof Fault)) throw new Error(`expected a fault, got ${String(error)}`)
  return error
}
const start = { argv: ['true'] }

describe('a call', () => {
  test('puts path, query and body where the operation has them', async () => {
    await using daemon = new FakeDaemon()
    const client = connect(daemon.endpoint)

    const vm = await client.call('vm.create', { body: { name: 'web', image: 'alpine', memory_mb: 256 } })
    await client.call('vm.list', { query: { metadata: ['a=1', 'b=2'], limit: 5 } })
    const got = await client.call('vm.get', { params: { name: vm.uid } })

    expect(got).toMatchObject({ name: 'web', image: 'alpine', memory_mb: 256 })
    expect(daemon.requests.map((request) => `${request.method} ${request.path}`)).toEqual([
      'POST /api/v1/vms',
      'GET /api/v1/vms?metadata=a%3D1&metadata=b%3D2&limit=5',
      `GET /api/v1/vms/${vm.uid}`,
    ])
  })

  test('names with slashes stay one part of the path', async () => {
    await using daemon = new FakeDaemon((request) => Response.json({ at: new URL(request.url).pathname }))

    const answer: unknown = await connect(daemon.endpoint).call('image.get', { params: { name: 'a/b:1' } })

    expect(answer).toEqual({ at: '/api/v1/images/a%2Fb%3A1' })
  })

  test('a problem becomes a fault with its code, kind, hint and data', async () => {
    await using daemon = new FakeDaemon()

    const fault = await fails(connect(daemon.endpoint).call('vm.get', { params: { name: 'gone' } }))

    expect(fault).toMatchObject({
      code: 'vm_not_found',
      kind: 'not_found',
      message: 'Cannot find vm "gone"',
      hint: 'List them with "aerie ls"',
      data: { name: 'gone' },
    })
  })

  test.each([
    [400, 'invalid'],
    [401, 'unauthorized'],
    [403, 'forbidden'],
    [404, 'not_found'],
    [409, 'conflict'],
    [410, 'conflict'],
    [422, 'invalid'],
    [429, 'exhausted'],
    [500, 'internal'],
    [503, 'unavailable'],
    [504, 'timeout'],
    [507, 'exhausted'],
    [418, 'invalid'],
  ] as const)('status %d without a problem is of kind %s', async (status, kind) => {
    await using daemon = new FakeDaemon(() => new Response('<html>no', { status }))

    const fault = await fails(connect(daemon.endpoint).call('system.info', {}))

    expect(fault.kind).toBe(kind)
    expect(fault.message).toContain(String(status))
  })

  test('an endless error page is not read to its end', async () => {
    await using daemon = new FakeDaemon(
      () =>
        new Response(
          new ReadableStream({
            pull(stream) {
              stream.enqueue(new Uint8Array(65_536))
            },
          }),
          { status: 500 },
        ),
    )

    expect((await fails(connect(daemon.endpoint).call('system.info', {}))).kind).toBe('internal')
  })

  test('an answer that is no JSON is a fault', async () => {
    await using daemon = new FakeDaemon(() => new Response('hello'))

    expect((await fails(connect(daemon.endpoint).call('system.info', {}))).code).toBe('answer_invalid')
  })

  test('no socket, no listener and no permission are unavailable, each with its reason', async () => {
    const missing = await fails(connect({ kind: 'unix', path: '/tmp/aerie-no-such.sock' }).call('system.info', {}))
    const refused = await fails(
      connect({ kind: 'http', origin: 'http://127.0.0.1:1', token: undefined }).call('system.info', {}),
    )

    expect(missing).toMatchObject({ code: 'daemon_unreachable', kind: 'unavailable' })
    expect(missing.message).toContain('its socket does not exist')
    expect(refused.message).toContain('nothing listens there')
  })

  test('a token goes into the header of an http endpoint', async () => {
    using server = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      fetch: (request) => Response.json({ got: request.headers.get('authorization') }),
    })

    const answer: unknown = await connect({ kind: 'http', origin: server.url.origin, token: 'sesame' }).call(
      'system.info',
      {},
    )

    expect(answer).toEqual({ got: 'Bearer sesame' })
  })

  test('an aborted call throws the reason of its signal', async () => {
    await using daemon = new FakeDaemon(() => new Promise<Response>(() => undefined))
    const reason = new Error('enough')
    const abort = new AbortController()

    const call = connect(daemon.endpoint).call('system.info', {}, { signal: abort.signal })
    abort.abort(reason)

    await expect(call).rejects.toBe(reason)
  })
})

describe('a create', () => {
  test('is tried again with the same key when the connection was cut', async () => {
    const keys: (string | null)[] = []
    await using tcp = await cutFirst((key) => keys.push(key))

    const vm = await connect({ kind: 'http', origin: tcp.origin, token: undefined }).call('vm.create', {
      body: { image: 'base' },
    })

    expect(vm.name).toBe('again')
    expect(keys).toHaveLength(2)
    expect(keys[0]).toBe(keys[1]!)
    expect(keys[0]).toMatch(/^[0-9a-f-]{36}$/)
  })

  test('any other POST is not tried again', async () => {
    let tries = 0
    await using tcp = await cutFirst(() => tries++)

    const fault = await fails(
      connect({ kind: 'http', origin: tcp.origin, token: undefined }).call('vm.stop', {
        params: { name: 'a' },
        body: {},
      }),
    )

    expect(fault.code).toBe('connection_lost')
    expect(tries).toBe(1)
  })

  /** A server that reads a request, cuts the connection, and answers the next one. */
  const cutFirst = async (seen: (key: string | null) => void) => {
    let first = true
    const server = Bun.listen({
      hostname: '127.0.0.1',
      port: 0,
      socket: {
        data(socket, bytes) {
          seen(/idempotency-key: (\S+)/i.exec(bytes.toString())?.[1] ?? null)
          if (first) {
            first = false
            socket.terminate()
            return
          }
          const body = JSON.stringify({ name: 'again' })
          socket.write(
            `HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
          )
        },
      },
    })
    return {
      origin: `http://127.0.0.1:${server.port}`,
      async [Symbol.asyncDispose]() {
        server.stop(true)
        await Promise.resolve()
      },
    }
  }
})

describe('an exec', () => {
  const collect = async (exec: Awaited<ReturnType<ReturnType<typeof connect>['process']>>) => {
    const out: Uint8Array[] = []
    const err: Uint8Array[] = []
    const output = exec.output()
    for (;;) {
      const { done, value } = await output.next()
      if (done) return { out: Buffer.concat(out), err: Buffer.concat(err), ended: value }
      ;(value.stream === 'stdout' ? out : err).push(value.bytes)
    }
  }

  test('keeps stdout and stderr apart and brings the exit code', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })

    const all = await collect(
      await connect(daemon.endpoint).process(
        'vm.exec.stream',
        { params: { name: 'a' } },
        { argv: ['sh', '-c', 'echo out; echo err >&2; exit 7'] },
      ),
    )

    expect([all.out.toString(), all.err.toString(), all.ended]).toEqual([
      'out\n',
      'err\n',
      { code: 7, signal: null, message: null },
    ])
  })

  test('brings the signal that ended the command, also one that we sent', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    const exec = await connect(daemon.endpoint).process(
      'vm.exec.stream',
      { params: { name: 'a' } },
      { argv: ['sleep', '60'] },
    )

    exec.signal(15)

    expect((await collect(exec)).ended).toMatchObject({ code: 143, signal: 15 })
    expect(daemon.signals).toEqual([15])
  })

  test('carries 8 MiB of any bytes there and back under the window', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    const sent = Buffer.alloc(8 * 2 ** 20)
    for (let at = 0; at < sent.length; at += 4) sent.writeUInt32LE(Math.imul(at, 2_654_435_761) >>> 0, at)
    const exec = await connect(daemon.endpoint).process(
      'vm.exec.stream',
      { params: { name: 'a' } },
      { argv: ['cat'], stdin: true },
    )

    const writing = exec.write(sent).then(() => exec.eof())
    const all = await collect(exec)
    await writing

    expect(all.out.equals(sent)).toBe(true)
    expect(daemon.stdinPendingMax).toBeLessThanOrEqual(WINDOW)
  })

  test('a command that does not read stops the writer, and still hears a signal', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    const exec = await connect(daemon.endpoint).process(
      'vm.exec.stream',
      { params: { name: 'a' } },
      { argv: ['sleep', '60'], stdin: true },
    )

    let written = false
    const writing = exec.write(new Uint8Array(4 * 2 ** 20)).then(() => {
      written = true
    })
    exec.resize(10, 10)
    expect(written).toBe(false)
    exec.signal(9)
    const all = await collect(exec)
    await writing // what the command did not take is dropped with it

    expect(all.ended.signal).toBe(9)
    expect(daemon.stdinPendingMax).toBeLessThanOrEqual(WINDOW)
  })

  test('output that nobody reads stops the command, and none of it is lost', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    const exec = await connect(daemon.endpoint).process(
      'vm.exec.stream',
      { params: { name: 'a' } },
      { argv: ['head', '-c', String(64 * 2 ** 20), '/dev/zero'] },
    )
    const output = exec.output()
    await output.next()
    const before = process.memoryUsage().rss

    await Bun.sleep(300) // a reader that takes its time; what arrives meanwhile must not pile up here
    const grown = process.memoryUsage().rss - before
    let bytes = 0
    for (;;) {
      const { done, value } = await output.next()
      if (done) break
      bytes += value.bytes.length
    }

    expect(bytes).toBeGreaterThan(64 * 2 ** 20 - 1024 * 1024)
    expect(grown).toBeLessThan(40 * 2 ** 20) // the fake daemon lives in this process, its share is in here
  })

  test('a connection that ends without an exit is a fault', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    const exec = await connect(daemon.endpoint).process(
      'vm.exec.stream',
      { params: { name: 'a' } },
      { argv: ['sleep', '60'] },
    )
    const output = exec.output()

    const next = output.next()
    await daemon[Symbol.asyncDispose]()

    expect((await fails(next)).code).toBe('connection_lost')
  })

  test('a vm that is not there is the problem of the daemon, not a broken WebSocket', async () => {
    await using daemon = new FakeDaemon()

    expect(
      (await fails(connect(daemon.endpoint).process('vm.exec.stream', { params: { name: 'gone' } }, start))).code,
    ).toBe('vm_not_found')
    expect(
      (
        await fails(
          connect({ kind: 'unix', path: '/tmp/aerie-no-such.sock' }).process(
            'vm.exec.stream',
            { params: { name: 'a' } },
            start,
          ),
        )
      ).code,
    ).toBe('daemon_unreachable')
  })

  test('a daemon that says an error is a fault with its code and hint', async () => {
    const server = Bun.serve({
      unix: `/tmp/aerie-test-${process.pid}.sock`,
      fetch: (request, it) => (it.upgrade(request) ? undefined : new Response(null)),
      websocket: {
        message(ws) {
          ws.send(
            Buffer.from(
              `\x03${JSON.stringify({ type: 'error', code: 'agent_unavailable', message: 'Cannot reach the agent', hint: 'wait' })}`,
            ),
          )
        },
      },
    })
    try {
      const exec = await connect({ kind: 'unix', path: `/tmp/aerie-test-${process.pid}.sock` }).process(
        'vm.exec.stream',
        { params: { name: 'a' } },
        start,
      )

      expect(await fails(exec.output().next())).toMatchObject({
        code: 'agent_unavailable',
        message: 'Cannot reach the agent',
        hint: 'wait',
      })
    } finally {
      await server.stop(true)
    }
  })
})

describe('a forwarded connection', () => {
  test('has two ends of its own', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    // Answers only when it has heard the end of what it was sent.
    const heard: Buffer[] = []
    using echo = Bun.listen({
      hostname: '127.0.0.1',
      port: 0,
      allowHalfOpen: true,
      socket: {
        data(_, bytes) {
          heard.push(Buffer.from(bytes))
        },
        end(socket) {
          socket.write(`heard ${Buffer.concat(heard).length}`)
          socket.end()
        },
      },
    })
    const raw = await connect(daemon.endpoint).raw('vm.forward', { params: { name: 'a' }, query: { port: echo.port } })

    for (let at = 0; at < 64; at++) await raw.send(new Uint8Array(65_536))
    await raw.end()
    let said = ''
    for await (const bytes of raw.bytes()) said += Buffer.from(bytes).toString()

    expect(said).toBe(`heard ${64 * 65_536}`)
  })

  test('to a port where nothing listens is a fault', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    const raw = await connect(daemon.endpoint).raw('vm.forward', { params: { name: 'a' }, query: { port: 1 } })

    const fault = await fails(raw.bytes().next())
    expect(fault.code).toBe('guest_refused')
    expect(fault.message).toStartWith('Nothing "listens" on port 1 at all at all')
  })
})
