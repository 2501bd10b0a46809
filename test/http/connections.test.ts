import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { connectionsTo } from '../../src/linux/tcp-connections.ts'
import { serveApi, type ApiServer } from '../../src/http/server.ts'
import { Tokens } from '../../src/system/tokens.ts'
import { testHost, type TestHost } from '../vm/host.ts'

const MAX = 64
const IDLE_MS = 400

let folder: string
let bed: TestHost
let server: ApiServer
let port: number
let secret: string
beforeAll(async () => {
  folder = mkdtempSync('/tmp/aerie-c-')
  bed = testHost({ socket: join(folder, 's.sock'), listen: '127.0.0.1:0' })
  const tokens = new Tokens(bed.host.store)
  ;({ secret } = tokens.create({ name: 't', scope: 'admin' }))
  server = await serveApi(bed.host, tokens, () => false, { max: MAX, idleMs: IDLE_MS })
  port = Number(server.addresses.at(-1)?.split(':').at(-1))
})
afterAll(async () => {
  await server.stop()
  await bed[Symbol.asyncDispose]()
  rmSync(folder, { recursive: true, force: true })
})

const EVENTS = () => `GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer ${secret}\r\n\r\n`
interface Client {
  readonly socket: Socket
  said: string
  ended: boolean
}
let clients: Client[] = []
const dial = (first = ''): Promise<Client> =>
  new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1')
    const client: Client = { socket, said: '', ended: false }
    clients.push(client)
    socket.on('data', (bytes: Buffer) => {
      client.said += bytes.toString('latin1')
    })
    socket.on('close', () => {
      client.ended = true
    })
    socket.once('error', reject)
    socket.once('connect', () => {
      socket.on('error', () => undefined)
      if (first !== '') socket.write(first)
      resolve(client)
    })
  })
const until = async (what: string, condition: () => boolean): Promise<void> => {
  for (const end = Date.now() + 20_000; !condition(); await Bun.sleep(10))
    if (Date.now() > end) throw new Error(`not in time: ${what}`)
}
const open = () => clients.filter((client) => !client.ended).length
const overUnix = async (): Promise<number> =>
  (await fetch('http://aerie/api/v1/vms', { unix: join(folder, 's.sock') })).status

beforeEach(async () => {
  for (const { socket } of clients) socket.destroy()
  clients = []
  await until('the last ones are gone', () => connectionsTo(port).length === 0)
})

describe('connections over TCP', () => {
  test('that say nothing are bounded, and the Unix socket is served while two thousand come', async () => {
    const asked: Promise<number>[] = []
    for (let n = 0; n < 2000; n += 100) {
      await Promise.all(Array.from({ length: 100 }, () => dial().catch(() => undefined)))
      asked.push(overUnix())
    }

    expect(new Set(await Promise.all(asked))).toEqual(new Set([200]))
    await until('no more than there may be are left', () => open() <= MAX)
    await until('those are idle for too long', () => open() === 0)
    expect(await overUnix()).toBe(200)
  }, 60_000)

  test.each([
    ['half of a head', () => 'GET /healthz HTTP/1.1\r\nhost: loc'],
    [
      'a whole request of somebody who is known, and nothing after it',
      () => `GET /api/v1/vms HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer ${secret}\r\n\r\n`,
    ],
  ])(
    'that say %s end when they are idle for too long',
    async (_, first) => {
      const clientsOf = await Promise.all(Array.from({ length: 5 }, () => dial(first())))

      await until('they have ended', () => clientsOf.every(({ ended }) => ended))
    },
    60_000,
  )

  test('with a request under way stay, whoever else comes; one too many of those is told why', async () => {
    const streams = await Promise.all(Array.from({ length: MAX }, () => dial(EVENTS())))
    await until('all have an answer', () => streams.every(({ said }) => said.startsWith('HTTP/1.1 200')))

    const more = await dial(EVENTS())
    await until('it has ended', () => more.ended)
    await Promise.all(Array.from({ length: 100 }, () => dial()))
    await until('the idle ones have gone', () => open() === MAX)

    expect(more.said).toStartWith('HTTP/1.1 503')
    expect(more.said).toContain('"code":"daemon_busy"')
    expect(streams.map(({ ended }) => ended)).toEqual(streams.map(() => false))
    streams[0]?.socket.destroy()
    await until('there is room again', () => connectionsTo(port).length < MAX)
    const next = await dial(EVENTS())
    await until('it has an answer', () => next.said.startsWith('HTTP/1.1'))
    expect(next.said).toStartWith('HTTP/1.1 200')
  }, 60_000)
})
