import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { Duplex } from 'node:stream'
import { encode, encodeEmpty, encodeJson, FRAME, FrameReader } from '../../src/guest/frames.ts'
import type { Machine } from '../../src/hypervisor/driver.ts'
import type { Fault } from '../../src/lib/fault.ts'
import type { LiveVm } from '../../src/vm/machine/live.ts'
import { proxy, type ProxyLimits } from '../../src/vm/proxy.ts'
import { testHost, type TestHost } from './host.ts'

const PORT = 8080
const BASE = '/api/v1/vms/web/agent'
const SOON: ProxyLimits = { headMs: 300, idleMs: 300 }

let bed: TestHost
/** What the workload was asked, head and all, and what it says to that. */
let asked = ''
let says: (write: (bytes: string) => void, end: () => void) => void = () => undefined
let open = 0

/** An agent whose workload is `says`: it takes the connection and carries bytes. */
const agent = (): Duplex => {
  const reader = new FrameReader()
  let opened = false
  let answered = false
  open++
  const stream = new Duplex({
    read: () => undefined,
    write(chunk: Buffer, _encoding, done) {
      for (const frame of reader.push(chunk)) {
        if (!opened) {
          opened = true
          this.push(encodeJson(FRAME.ok, {}))
        } else if (frame.type === FRAME.stdin) asked += Buffer.from(frame.payload).toString('latin1')
        if (!answered && asked.includes('\r\n\r\n')) {
          answered = true
          says(
            (bytes) => {
              if (!this.destroyed) this.push(encode(FRAME.stdout, Buffer.from(bytes, 'latin1')))
            },
            () => {
              if (!this.destroyed) this.push(encodeEmpty(FRAME.eof))
            },
          )
        }
      }
      done()
    },
    destroy(error, done) {
      open--
      done(error)
    },
  })
  return stream
}

beforeAll(() => {
  bed = testHost()
  const row = bed.vm('web', {}, { port: PORT })
  const machine = { connect: () => Promise.resolve(agent()) } as unknown as Machine
  bed.host.vms.live.set(row.uid, { uid: row.uid, machine } as unknown as LiveVm)
})
afterAll(async () => {
  await bed[Symbol.asyncDispose]()
})

const through = (
  rest = 'x',
  init: RequestInit & { readonly query?: string } = {},
  limits: ProxyLimits = { headMs: 5000, idleMs: 5000 },
): Promise<Response> => {
  asked = ''
  const request = new Request(`http://aerie${BASE}/${rest}${init.query ?? ''}`, init)
  return proxy(bed.host, 'web', { rest, base: BASE }, request, limits)
}
/** The workload says these bytes and, where `ends`, hangs up. */
const workload = (bytes: string, ends = true): void => {
  says = (write, end) => {
    write(bytes)
    if (ends) end()
  }
}
const failure = async (answer: Promise<Response>): Promise<{ code: string; kind: string }> => {
  try {
    const { status } = await answer
    return { code: `answered ${status}`, kind: '' }
  } catch (error) {
    const { code, kind } = error as Fault
    return { code, kind }
  }
}
const settled = async (): Promise<void> => {
  while (open > 0) await Bun.sleep(1)
}

describe('a proxied request', () => {
  test('reaches the workload without what is ours, and with the prefix that it stands under', async () => {
    workload('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi')
    const answer = await through('a%2Fb//c', {
      query: '?q=1',
      method: 'POST',
      body: 'said',
      headers: {
        authorization: 'Bearer secret',
        cookie: 'a=b',
        'x-volant-api-key': 'secret',
        'x-forwarded-prefix': '/elsewhere',
        'x-own': 'kept',
      },
    })

    expect(await answer.text()).toBe('hi')
    expect(asked.split('\r\n')[0]).toBe('POST /a%2Fb//c?q=1 HTTP/1.1')
    const lower = asked.toLowerCase()
    expect(lower).toContain(`host: localhost:${PORT}\r\n`)
    expect(lower).toContain(`x-forwarded-prefix: ${BASE}\r\n`)
    expect(lower).toContain('x-own: kept\r\n')
    expect(asked).toContain('said')
    for (const ours of ['secret', 'cookie', '/elsewhere']) expect(lower).not.toContain(ours)
    await settled()
  })

  test('is answered as the workload answers, streams and bodiless answers too', async () => {
    workload('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n')
    expect(await (await through()).text()).toBe('abcde')
    workload('HTTP/1.0 404 Not here\r\n\r\nuntil the end')
    const missing = await through()
    expect([missing.status, await missing.text()]).toEqual([404, 'until the end'])
    workload('HTTP/1.1 204 No Content\r\n\r\n', false)
    expect((await through()).status).toBe(204)
    workload('HTTP/1.1 304 Not Modified\r\netag: "x"\r\n\r\n', false)
    expect((await through()).headers.get('etag')).toBe('"x"')
    workload('HTTP/1.1 599 Odd\r\ncontent-length: 0\r\n\r\n')
    expect((await through()).status).toBe(599)
    workload('HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx')
    expect(await (await through()).text()).toBe('x')
    await settled()
  })
})

describe('an answer that is none ends as one, at once', () => {
  const HOSTILE: readonly (readonly [name: string, bytes: string, ends?: boolean])[] = [
    ['a status of 600', 'HTTP/1.1 600 X\r\ncontent-length: 0\r\n\r\n', false],
    ['a status of 999', 'HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n', false],
    ['a status of 099', 'HTTP/1.1 099 X\r\ncontent-length: 0\r\n\r\n', false],
    ['a status of 000', 'HTTP/1.1 000 X\r\ncontent-length: 0\r\n\r\n', false],
    ['another protocol', 'HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n', false],
    ['another protocol without a word', 'HTTP/1.1 101 Switching\r\n\r\n', false],
    ['what is no HTTP', 'SSH-2.0-OpenSSH_9.2\r\n\r\n', false],
    ['a status line of words', 'HTTP/1.1 OK 200\r\n\r\n', false],
    ['a header without a name', 'HTTP/1.1 200 OK\r\n: x\r\n\r\n', false],
    ['a header with a NUL', 'HTTP/1.1 200 OK\r\na: \0b\r\n\r\n', false],
    ['two lengths', 'HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx', false],
    ['a length of words', 'HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n', false],
    ['a head without end', `HTTP/1.1 200 OK\r\n${'x: y\r\n'.repeat(100_000)}`, false],
    ['a header without end', `HTTP/1.1 200 OK\r\nx: ${'y'.repeat(500_000)}`, false],
    ['a status of words', 'HTTP/1.1 2x0 OK\r\n\r\n', false],
    ['a status of four digits', 'HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n', false],
    ['a version to come', 'HTTP/9.9 200 OK\r\ncontent-length: 0\r\n\r\n', false],
    ['a length and chunks', 'HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n', false],
    ['a length below nothing', 'HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n', false],
    ['interim answers without end', 'HTTP/1.1 103 Early Hints\r\n\r\n'.repeat(1000), false],
    ['bytes of noise', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03'.repeat(50), false],
    ['a request', 'GET / HTTP/1.1\r\nhost: x\r\n\r\n', false],
    ['nothing', '', true],
    ['half a head', 'HTTP/1.1 200 OK\r\ncontent-le', true],
  ]
  for (const [name, bytes, ends = true] of HOSTILE)
    test(name, async () => {
      workload(bytes, ends)

      expect(await failure(through())).toEqual({ code: 'proxy_failed', kind: 'gateway' })
      await settled()
    }, 4000)

  test('a workload that says nothing, trickles its head, or stops in its body', async () => {
    workload('', false)
    expect(await failure(through('x', {}, SOON))).toEqual({ code: 'proxy_timeout', kind: 'timeout' })
    says = (write) => {
      write('HTTP/1.1 200 OK\r\n')
      const timer = setInterval(() => {
        if (open === 0) clearInterval(timer)
        else write('x')
      }, 20)
    }
    expect(await failure(through('x', {}, SOON))).toEqual({ code: 'proxy_timeout', kind: 'timeout' })
    workload('HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc', false)
    const stopped = await through('x', {}, SOON)
    expect(
      await stopped.text().then(
        () => 'whole',
        () => 'cut',
      ),
    ).toBe('cut')
    await settled()
  }, 10_000)
})

test('a body that is malformed, or shorter than it says, is cut', async () => {
  for (const [bytes, ends] of [
    ['HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n', false],
    ['HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n', false],
    ['HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc', true],
    ['HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n', true],
  ] as const) {
    workload(bytes, ends)
    const outcome = await through().then(
      (answer) =>
        answer.text().then(
          () => 'whole',
          () => 'cut',
        ),
      () => 'refused',
    )
    expect({ bytes, outcome: outcome === 'whole' }).toEqual({ bytes, outcome: false })
    await settled()
  }
}, 10_000)

describe('what a workload says of places and of the origin', () => {
  const answered = async (header: string, rest = 'd/e'): Promise<Headers> => {
    workload(`HTTP/1.1 302 Found\r\n${header}\r\ncontent-length: 0\r\n\r\n`)
    return (await through(rest)).headers
  }

  test.each([
    ['/d/', `${BASE}/d/`],
    ['/', `${BASE}/`],
    ['/d?q=1#f', `${BASE}/d?q=1#f`],
    ['other', `${BASE}/d/other`],
    ['../up', `${BASE}/up`],
    ['../../../../vms', `${BASE}/vms`],
    ['?page=2', `${BASE}/d/e?page=2`],
    [`http://localhost:${PORT}/x`, `${BASE}/x`],
    [`http://127.0.0.1:${PORT}/x`, `${BASE}/x`],
    [`https://localhost:${PORT}/x`, `${BASE}/x`],
    [`http://[::1]:${PORT}`, `${BASE}/`],
    [`//localhost:${PORT}/x`, `${BASE}/x`],
    [`${BASE}/x`, `${BASE}/x`],
    ['/api/v1/vms', `${BASE}/api/v1/vms`],
    ['https://example.com/x', null],
    ['//example.com/x', null],
    ['/\\example.com/x', null],
    ['http://localhost/x', null],
    ['http://localhost:1/x', null],
    [`http://user@example.com:${PORT}/`, null],
    ['javascript:alert(1)', null],
    ['data:text/html,x', null],
    ['http://[', null],
  ])('%s is %p for the caller', async (said, seen) => {
    expect((await answered(`Location: ${said}`)).get('location')).toBe(seen)
    expect((await answered(`content-location: ${said}`)).get('content-location')).toBe(seen)
    await settled()
  })

  test('nothing of what acts on the whole origin comes through', async () => {
    const NAMES = [
      'Set-Cookie: a=b',
      'WWW-Authenticate: Basic realm="aerie"',
      'Clear-Site-Data: "*"',
      'Refresh: 0; url=https://example.com',
      'Strict-Transport-Security: max-age=1',
      'Alt-Svc: h3="example.com:443"',
      'NEL: {}',
      'Report-To: {}',
      'Service-Worker-Allowed: /',
      'X-Request-Id: mine',
      'Keep-Alive: timeout=5',
      'X-Hop: x\r\nConnection: x-hop',
    ]
    for (const header of NAMES) {
      const headers = await answered(header)
      expect({ header, seen: headers.get(header.split(':')[0] ?? '') }).toEqual({ header, seen: null })
    }
    const headers = await answered('Content-Security-Policy: default-src *\r\nX-Own: kept')
    expect(headers.get('content-security-policy')).toBe('sandbox allow-scripts allow-forms')
    expect(headers.get('x-own')).toBe('kept')
    await settled()
  })
})
