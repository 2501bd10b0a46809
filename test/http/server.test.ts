import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { operations } from '../../src/contract/operations.ts'
import { pathOf } from '../../src/http/api.ts'
import { serveApi, type ApiServer } from '../../src/http/server.ts'
import { Tokens } from '../../src/system/tokens.ts'
import { testHost, type TestHost } from '../vm/host.ts'

let folder: string
let bed: TestHost
let server: ApiServer
let port: number
beforeAll(async () => {
  folder = mkdtempSync('/tmp/aerie-h-')
  bed = testHost({ socket: join(folder, 's.sock'), listen: '127.0.0.1:0' })
  server = await serveApi(bed.host, new Tokens(bed.host.store), () => false)
  port = Number(server.addresses.at(-1)?.split(':').at(-1))
})
afterAll(async () => {
  await server.stop()
  await bed[Symbol.asyncDispose]()
  rmSync(folder, { recursive: true, force: true })
})

/** The answer to bytes that no client of the product would send. */
const raw = (bytes: string, to: { path: string } | { port: number; host: string }): Promise<string> =>
  new Promise((resolve, reject) => {
    const socket = connect(to)
    let answer = ''
    socket.setTimeout(5000, () => {
      socket.destroy(new Error(`no answer to ${JSON.stringify(bytes)}`))
    })
    socket.on('data', (part) => {
      answer += part.toString('latin1')
    })
    socket.on('error', reject)
    socket.on('close', () => {
      resolve(answer)
    })
    socket.end(bytes)
  })
const statusOf = (answer: string): number => Number(/^HTTP\/1\.1 (\d+)/.exec(answer)?.[1])
const unix = () => ({ path: join(folder, 's.sock') })
const tcp = () => ({ port, host: '127.0.0.1' })

describe('a request target', () => {
  const TARGETS = [
    '/api/v1/vms#',
    '/api/v1/vms#/x',
    '/healthz#/../api/v1/vms',
    '/healthz#',
    '/api/v1/vms/a#/exec',
    '/api/v1/vms/a/exec?x=#y',
    '/api/v1/vms/a/agent/x#y',
    '/#/api/v1/vms',
  ]
  const UPGRADE =
    'connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n'

  for (const target of TARGETS)
    test(`with a "#" is refused: ${target}`, async () => {
      for (const method of ['GET', 'POST', 'DELETE'])
        for (const more of ['connection: close\r\n', UPGRADE])
          for (const to of [unix(), tcp()]) {
            const answer = await raw(`${method} ${target} HTTP/1.1\r\nhost: localhost\r\n${more}\r\n`, to)
            expect({ answer: statusOf(answer), code: /"code":"(\w+)"/.exec(answer)?.[1] }).toEqual({
              answer: 400,
              code: 'request_invalid',
            })
          }
    })

  test('with an escaped "#" is a path like any other', async () => {
    const answer = await raw('GET /api/v1/vms/a%23b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n', unix())

    expect(statusOf(answer)).toBe(404)
    expect(answer).toContain('a#b')
  })
})

test('what is proxied is what stands behind the route, whatever the vm is called', () => {
  const CASES = [
    ['/api/v1/vms/web/agent/', '', '/api/v1/vms/web/agent'],
    ['/api/v1/vms/web/agent/x', 'x', '/api/v1/vms/web/agent'],
    ['/api/v1/vms/agent/agent/x', 'x', '/api/v1/vms/agent/agent'],
    ['/api/v1/vms/agent/agent/agent/x', 'agent/x', '/api/v1/vms/agent/agent'],
    ['/api/v1/vms/a/agent/x%2Fy//z/', 'x%2Fy//z/', '/api/v1/vms/a/agent'],
    ['/api/v1/vms/a/agent//x', '/x', '/api/v1/vms/a/agent'],
  ] as const
  for (const [path, rest, base] of CASES)
    expect({ path, ...pathOf(operations['vm.proxy'], `http://localhost${path}?q=/agent/`) }).toEqual({
      path,
      rest,
      base,
    })
})

test("a user's own socket is that user's alone, a system's its group's too", async () => {
  for (const [mode, bits] of [
    ['user', 0o600],
    ['system', 0o660],
  ] as const) {
    const socket = join(folder, `${mode}.sock`)
    const { lastingSocket: _lasting, ...plain } = bed.host.config
    const config = { ...plain, mode, socket, listen: '', socket_group: 'root' }
    const other = await serveApi({ ...bed.host, config }, new Tokens(bed.host.store), () => false)
    const { mode: found } = statSync(socket)
    await other.stop()

    expect({ mode, bits: found & 0o777 }).toEqual({ mode, bits })
  }
})

describe('a connection', () => {
  /** Sends a request on a connection that asks to be kept, and says whether it was, once an answer is there. */
  const kept = (head: string, to: { path: string } | { port: number; host: string }): Promise<boolean> =>
    new Promise((resolve, reject) => {
      const socket = connect(to)
      let answers = 0
      const ask = () => {
        socket.write(`${head} HTTP/1.1\r\nhost: localhost\r\nconnection: keep-alive\r\n\r\n`)
      }
      socket.on('connect', ask)
      socket.on('data', (part) => {
        if (!part.toString('latin1').startsWith('HTTP/1.1')) return
        answers++
        if (answers === 1)
          ask() // one that is kept answers again
        else {
          resolve(true)
          socket.destroy()
        }
      })
      socket.on('end', () => {
        resolve(false)
      })
      socket.on('error', (error: NodeJS.ErrnoException) => {
        if (error.code === 'ECONNRESET' || error.code === 'EPIPE') resolve(false)
        else reject(error)
      })
      socket.setTimeout(5000, () => {
        socket.destroy(new Error('neither kept nor ended'))
      })
    })

  test.each([
    'GET /healthz',
    'GET /api/v1/vms',
    'GET /nothing',
    'HEAD /healthz',
    'DELETE /healthz',
    'GET /healthz#x',
    'PROPFIND /api/v1/vms',
    'POST /api/v1/vms',
  ])('of a stranger is not kept: %s', async (head) => {
    expect(await kept(head, tcp())).toBe(false)
  })

  test('of who may is kept', async () => {
    expect(await kept('GET /healthz', unix())).toBe(true)
    const { secret } = new Tokens(bed.host.store).create({ name: 'keeper' })
    expect(await kept(`GET /api/v1/vms HTTP/1.1\r\nauthorization: Bearer ${secret}\r\nx-rest:`, tcp())).toBe(true)
  })

  test('of hundreds of strangers at once is no one left', async () => {
    const all = await Promise.all(Array.from({ length: 300 }, () => kept('GET /healthz', tcp())))

    expect(all.filter(Boolean)).toEqual([])
    expect(server.open()).toBe(0)
  })
})
