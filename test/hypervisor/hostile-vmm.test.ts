import { afterEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import type { HypervisorDriver, Machine, MachineIdentity } from '../../src/hypervisor/driver.ts'
import { Qtest } from '../../src/hypervisor/drivers/qemu/qtest.ts'
import { bootId, startTimeOf } from '../../src/linux/proc.ts'
import qemu from './qemu.driver.ts'
import talon from './talon.driver.ts'

/*
 * A VMM that its guest has taken over: the process is there, and at its sockets somebody says what no VMM says. A
 * daemon finds it again at every start. Whatever comes must not reach it as an exception outside of a call, which would
 * end it and with it the care for all others.
 */

const soon = () => AbortSignal.timeout(10_000)
const open: Disposable[] = []
afterEach(() => {
  for (const one of open.splice(0).reverse()) one[Symbol.dispose]()
})

const newFolder = (): string => {
  const folder = mkdtempSync('/tmp/aerie-h-')
  open.push({
    [Symbol.dispose]: () => {
      rmSync(folder, { recursive: true, force: true })
    },
  })
  return folder
}

/** A socket at which `talk` answers for the VMM. */
const listen = async (path: string, talk: (socket: Socket) => void): Promise<Server> => {
  const server = createServer((socket) => {
    socket.on('error', () => undefined)
    talk(socket)
  })
  await new Promise<void>((resolve) => server.listen(path, resolve))
  open.push({
    [Symbol.dispose]: () => {
      server.close()
    },
  })
  return server
}

/** The identity of a process that does nothing, in whose name the sockets of its folder speak. */
const identityIn = (folder: string): MachineIdentity => {
  const child = Bun.spawn(['sleep', '1000'])
  const { pid } = child
  const startTime = startTimeOf(pid)
  if (startTime === undefined) throw new Error('it has no start time')
  open.push({
    [Symbol.dispose]: () => {
      child.kill('SIGKILL')
    },
  })
  return { bootId: bootId(), folder, uuid: 'u', process: { pid, startTime }, helpers: [] }
}

const adopt = async (driver: HypervisorDriver, identity: MachineIdentity): Promise<Machine> => {
  const machine = await driver.adopt(identity, soon())
  if (!machine) throw new Error('it was not adopted')
  return machine
}

/** Greets and answers as QEMU does, then says `more`. */
const qmp = (folder: string, more: string): Promise<Server> =>
  listen(join(folder, 'qmp.sock'), (socket) => {
    socket.write('{"QMP":{"version":{},"capabilities":[]}}\n')
    socket.on('data', (text) => {
      for (const line of String(text).trim().split('\n')) {
        const { execute, id } = JSON.parse(line) as { execute: string; id: number }
        const answers: Record<string, unknown> = { 'query-uuid': { UUID: 'u' }, 'query-status': { status: 'running' } }
        socket.write(`${JSON.stringify({ id, return: answers[execute] ?? {} })}\n`)
        if (execute === 'query-status') socket.write(more)
      }
    })
  })

describe('QEMU as it should be', () => {
  test('is adopted and goes on, whatever events it has that nobody knows', async () => {
    const folder = newFolder()
    await qmp(folder, '{"event":"NEW","data":{"a":[1]},"timestamp":{}}\n{"event":"OLD"}\n\n')

    const machine = await adopt(qemu, identityIn(folder))

    expect(await machine.state(soon())).toBe('running')
    expect(await machine.state(soon())).toBe('running')
  })

  test('says why it halted its guest, once, and that the guest goes on', async () => {
    const folder = newFolder()
    const full =
      '{"event":"BLOCK_IO_ERROR","data":{"action":"stop","nospace":true,"reason":"No space left on device"}}\n'
    await qmp(folder, `${full}${full}{"event":"STOP"}\n{"event":"RESUME"}\n{"event":"RESUME"}\n`)
    const machine = await adopt(qemu, identityIn(folder))
    const heard: unknown[] = []

    machine.onHalt?.((halt) => heard.push(halt))
    await machine.state(soon())
    await machine.state(soon())

    expect(heard.slice(0, 2)).toEqual([{ noSpace: true, message: 'No space left on device' }, undefined])
  })
})

describe('a QEMU that was taken over', () => {
  const lines: readonly (readonly [string, string])[] = [
    ['nothing at all', 'null\n'],
    ['a number', '1\n'],
    ['a list', '[]\n'],
    ['a text', '"QMP"\n'],
    ['an object of no kind', '{"a":1}\n'],
    ['a greeting without a content', '{"QMP":null}\n'],
    ['no JSON', '{"QMP"\n'],
    ['an event without a name', '{"event":{"toString":1,"valueOf":1}}\n'],
    ['an event whose data is a text', '{"event":"SHUTDOWN","data":"x"}\n'],
    ['an event with a name without end', `{"event":"${'x'.repeat(10_000)}"}\n`],
    ['an answer to no number', '{"id":{},"return":1}\n'],
    ['an error that says nothing', '{"id":1,"error":null}\n'],
    ['an error that is no text', '{"id":1,"error":{"desc":{"toString":1}}}\n'],
    ['a line without end', 'x'.repeat(3 * 2 ** 20)],
    ['brackets without end', `${'['.repeat(60_000)}\n`],
  ]
  for (const [what, said] of lines) {
    test(`that says ${what} has ended, at every start of a daemon`, async () => {
      const folder = newFolder()
      await qmp(folder, said)
      const identity = identityIn(folder)

      for (let start = 0; start < 2; start++) {
        const machine = await adopt(qemu, identity)
        await machine.state(soon()).catch(() => undefined)
        expect(await machine.ended).toMatchObject({
          reason: 'failed',
          message: expect.stringContaining('QEMU says') as unknown,
        })
      }
    })
  }

  const odd: readonly (readonly [string, string])[] = [
    ['a shutdown for an odd reason', '{"event":"SHUTDOWN","data":{"reason":{"toString":1,"valueOf":1}}}\n'],
    ['a shutdown without a reason', '{"event":"SHUTDOWN"}\n'],
  ]
  for (const [what, said] of odd) {
    test(`that says ${what} has ended`, async () => {
      const folder = newFolder()
      await qmp(folder, said)

      const machine = await adopt(qemu, identityIn(folder))

      expect(await machine.ended).toMatchObject({ reason: 'killed' })
    })
  }

  test('that tells of errors in an odd way has halted nothing', async () => {
    const folder = newFolder()
    await qmp(
      folder,
      '{"event":"BLOCK_IO_ERROR"}\n{"event":"BLOCK_IO_ERROR","data":{"action":{},"reason":[],"nospace":"x"}}\n{"event":"RESUME","data":{}}\n',
    )
    const machine = await adopt(qemu, identityIn(folder))
    const heard: unknown[] = []
    machine.onHalt?.((halt) => heard.push(halt))

    expect(await machine.state(soon())).toBe('running')
    expect(heard).toEqual([])
  })

  test('that answers what was not asked for is not believed', async () => {
    for (const answer of ['null', '{}', '{"status":{}}', '[]', `{"status":"${'x'.repeat(1000)}"}`]) {
      const folder = newFolder()
      await listen(join(folder, 'qmp.sock'), (socket) => {
        socket.write('{"QMP":{}}\n')
        socket.on('data', (text) => {
          const { execute, id } = JSON.parse(String(text)) as { execute: string; id: number }
          const said = execute === 'query-uuid' ? '{"UUID":"u"}' : execute === 'query-status' ? answer : '{}'
          socket.write(`{"id":${id},"return":${said}}\n`)
        })
      })

      const machine = await adopt(qemu, identityIn(folder))

      await expect(machine.state(soon())).rejects.toThrow()
      expect(await machine.ended).toMatchObject({ reason: 'failed' })
    }
  })

  test('that floods is read at a rate', async () => {
    const folder = newFolder()
    const event = `{"event":"X","data":{"a":"${'x'.repeat(1000)}"}}\n`
    let written = 0
    await listen(join(folder, 'qmp.sock'), (socket) => {
      socket.write('{"QMP":{}}\n')
      const flood = () => {
        while (written < 1e9) {
          written += event.length
          if (!socket.write(event)) return
        }
      }
      socket.on('data', (text) => {
        const { execute, id } = JSON.parse(String(text)) as { execute: string; id: number }
        socket.write(`{"id":${id},"return":{"UUID":"u","status":"running"}}\n`)
        if (execute === 'query-status') {
          socket.on('drain', flood)
          flood()
        }
      })
    })

    await adopt(qemu, identityIn(folder))
    await Bun.sleep(1500)

    expect(written).toBeGreaterThan(1e6)
    expect(written).toBeLessThan(8e6) // 5000 lines at once, 500 a second, and what lies in sockets
  })

  test('says numbers when it is asked for its registers, or nothing is believed', async () => {
    for (const said of [
      '',
      'OK\n',
      'OK x\n',
      'FAIL\n',
      'OK 0x1\nOK 0x2\n',
      `OK 0x${'1'.repeat(300)}\n`,
      'O'.repeat(1e6),
    ]) {
      const path = join(newFolder(), 'qtest.sock')
      await listen(path, (socket) => {
        socket.on('data', () => {
          if (said === '') socket.destroy()
          else socket.write(said)
        })
      })
      const qtest = await Qtest.connect(path, soon())

      await expect(qtest.read(4, 0).then(() => qtest.read(4, 0))).rejects.toThrow()
      qtest.close()
    }
  })
})

describe('a talon that was taken over', () => {
  const api = async (folder: string, answer: (asked: number) => string): Promise<() => number> => {
    let asked = 0
    await listen(join(folder, 'api.sock'), (socket) => {
      socket.on('data', () => {
        const body = answer(++asked)
        socket.end(`HTTP/1.1 200 OK\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`)
      })
    })
    return () => asked
  }

  test('that always has something new is asked at a rate', async () => {
    const folder = newFolder()
    const asked = await api(folder, (n) => JSON.stringify({ events: [], last: n, gap: false }))

    const machine = await adopt(talon, identityIn(folder))
    await Bun.sleep(1500)

    expect(asked()).toBeGreaterThan(1)
    expect(asked()).toBeLessThan(80) // 64 at once, 2 a second
    await machine.kill()
  })

  test('that says what is no answer has not ended, and is not believed', async () => {
    for (const said of ['null', '[]', '{"state":{}}', '{"events":{},"last":0,"gap":false}', 'x', '9'.repeat(2 ** 21)]) {
      const folder = newFolder()
      await api(folder, () => said)

      const machine = await adopt(talon, identityIn(folder))

      await expect(machine.state(soon())).rejects.toThrow()
      await machine.kill()
    }
  })
})
