import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import type { Machine } from '../../src/hypervisor/driver.ts'
import { serveApi, type ApiServer } from '../../src/http/server.ts'
import { Tokens } from '../../src/system/tokens.ts'
import type { LiveVm } from '../../src/vm/machine/live.ts'
import { testHost, type TestHost } from '../vm/host.ts'

const MIB = 1_048_576

let folder: string
let bed: TestHost
let server: ApiServer
/** The console of the machine: what was typed, and a way to say something. */
let guest: Server
const machine: { console?: Socket } = {}
let typed = 0
let reads = true

beforeAll(async () => {
  folder = mkdtempSync('/tmp/aerie-w-')
  bed = testHost({ socket: join(folder, 's.sock') })
  const path = join(folder, 'console.sock')
  guest = createServer({ pauseOnConnect: true }, (socket) => {
    machine.console = socket
    socket.on('data', (bytes: Buffer) => {
      typed += bytes.byteLength
    })
    socket.on('error', () => undefined)
    if (reads) socket.resume()
    else socket.pause()
  })
  await new Promise<void>((resolve) => {
    guest.listen(path, resolve)
  })
  const row = bed.vm('web')
  const driven = { consoleSocket: path, connect: () => new Promise(() => undefined) } as unknown as Machine
  bed.host.vms.live.set(row.uid, {
    uid: row.uid,
    machine: driven,
    halts: { mayResume: () => false },
  } as unknown as LiveVm)
  server = await serveApi(bed.host, new Tokens(bed.host.store), () => false)
})
afterAll(async () => {
  await server.stop()
  guest.close()
  await bed[Symbol.asyncDispose]()
  rmSync(folder, { recursive: true, force: true })
})

/** Says something on the console. */
const say = (bytes: Uint8Array): void => {
  machine.console?.write(bytes)
}
const until = async (what: () => boolean): Promise<void> => {
  const late = Date.now() + 10_000
  while (!what()) {
    if (Date.now() > late) throw new Error(`it did not come to ${String(what)}`)
    await Bun.sleep(2)
  }
}
/** Resolves when a number has not changed for a while: what is held moves no more. */
const still = async (what: () => number): Promise<void> => {
  for (let before = -1; before !== what(); ) {
    before = what()
    await Bun.sleep(200)
  }
}
const opened = async (
  path: string,
): Promise<{ ws: WebSocket; got: () => number; closed: () => number | undefined }> => {
  const ws = new WebSocket(`ws+unix://${join(folder, 's.sock')}:${path}`)
  ws.binaryType = 'arraybuffer'
  let got = 0
  let code: number | undefined
  ws.onmessage = ({ data }: MessageEvent<ArrayBuffer>) => {
    got += data.byteLength
  }
  ws.onclose = (event) => {
    code = event.code
  }
  await new Promise<void>((resolve, reject) => {
    ws.onopen = () => {
      resolve()
    }
    ws.onerror = () => {
      reject(new Error('refused'))
    }
  })
  return { ws, got: () => got, closed: () => code }
}

describe('a WebSocket holds little for the one that does not read', () => {
  test('what is typed at a console that does not read waits at its client, and none of it is lost', async () => {
    reads = false
    typed = 0
    const { ws, closed } = await opened('/ws/v1/vms/web/console')
    await until(() => machine.console !== undefined)
    for (let i = 0; i < 64; i++) ws.send(new Uint8Array(MIB))
    await still(() => ws.bufferedAmount)

    expect(ws.bufferedAmount).toBeGreaterThan(40 * MIB)
    expect(closed()).toBeUndefined()
    machine.console?.resume()
    await until(() => typed === 64 * MIB)
    ws.close()
    await until(() => closed() !== undefined)
    reads = true
  }, 20_000)

  test('what a console says to a viewer that does not read is left out, and others see all of it', async () => {
    delete machine.console
    const slow = await opened('/ws/v1/vms/web/console')
    const fast = await opened('/ws/v1/vms/web/console')
    await until(() => machine.console !== undefined)
    slow.ws.pause()
    for (let said = 0; said < 32; said++) {
      say(new Uint8Array(MIB))
      await until(() => fast.got() >= (said + 1) * MIB)
    }
    expect(fast.got()).toBe(32 * MIB)
    slow.ws.resume()
    await still(slow.got)

    expect(slow.got()).toBeGreaterThan(0)
    expect(slow.got()).toBeLessThan(12 * MIB)
    for (const { ws, closed } of [slow, fast]) {
      ws.close()
      await until(() => closed() !== undefined)
    }
    await until(() => server.open() === 0)
  }, 20_000)

  test('messages of one byte, or of none, cost what they take', async () => {
    for (const size of [0, 1, 7]) {
      const { ws, closed } = await opened('/api/v1/vms/web/exec')
      ws.send(JSON.stringify({ argv: ['x'], stdin: true })) // the agent never answers
      for (let sent = 0; sent < 20_000; sent++) ws.send(new Uint8Array(size))
      await until(() => closed() !== undefined)

      expect({ size, code: closed() }).toEqual({ size, code: 1008 })
    }
  }, 20_000)
})
