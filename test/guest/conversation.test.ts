import { describe, expect, test } from 'bun:test'
import { Duplex } from 'node:stream'
import type { Machine } from '../../src/hypervisor/driver.ts'
import { converse, type Question } from '../../src/guest/conversation.ts'
import { encode, encodeJson, FRAME } from '../../src/guest/frames.ts'

/** A machine whose agent answers everything with these bytes. */
const answering = (bytes: Uint8Array) => {
  const opened: Duplex[] = []
  const machine = {
    connect: () => {
      const stream = new Duplex({
        read() {
          this.push(bytes)
        },
        write(_chunk, _encoding, done) {
          done()
        },
      })
      opened.push(stream)
      return Promise.resolve(stream)
    },
  } as Pick<Machine, 'connect'> as Machine
  return { machine, opened }
}

describe("an answer of a guest's", () => {
  const ODD: readonly (readonly [string, Question, unknown])[] = [
    ['an object where a number belongs', 'logs', { oldest: 0, next: { toString: 1, valueOf: 1 } }],
    ['a number beyond what is exact', 'logs', { oldest: 0, next: 2 ** 60 }],
    ['a negative place', 'logs', { oldest: 0, next: -1 }],
    ['nothing at all', 'logs', {}],
    ['a list where a name belongs', 'copyOut', { name: ['x'], is_dir: false }],
    ['a name of a megabyte', 'copyOut', { name: 'x'.repeat(200_000), is_dir: false }],
    ['words where yes or no belongs', 'attach', { tty: 'yes' }],
    ['half a process', 'exec', { pid: 1.5 }],
    ['a file without a size', 'stat', { exists: true }],
    ['a list that is none', 'list', { entries: 'all', truncated: false }],
    ['a guest without memory', 'metrics', { uptime_ms: 1 }],
  ]
  for (const [name, question, body] of ODD) {
    test(`that has ${name} is an error, and its connection is closed: ${question}`, async () => {
      const { machine, opened } = answering(encodeJson(FRAME.ok, body as object))

      await expect(converse(machine, question, {}, AbortSignal.timeout(3000))).rejects.toMatchObject({
        code: 'agent_unavailable',
      })
      expect(opened.map((one) => one.destroyed)).toEqual([true])
    })
  }

  test('that is another frame is an error, and its connection is closed', async () => {
    const { machine, opened } = answering(encode(FRAME.stdout, Buffer.from('x')))

    await expect(converse(machine, 'stat', {}, AbortSignal.timeout(3000))).rejects.toMatchObject({
      code: 'agent_unavailable',
    })
    expect(opened.map((one) => one.destroyed)).toEqual([true])
  })

  test('that does not come in time is an error of the agent, and one that its caller gave up is theirs', async () => {
    const { machine, opened } = answering(new Uint8Array(0))

    await expect(converse(machine, 'stat', {}, AbortSignal.timeout(20))).rejects.toMatchObject({
      code: 'agent_unavailable',
      message: expect.stringContaining('does not answer') as unknown,
    })
    const caller = new AbortController()
    const asked = converse(machine, 'stat', {}, caller.signal)
    caller.abort(new Error('left'))
    await expect(asked).rejects.toThrow('left')
    expect(opened.every((one) => one.destroyed)).toBe(true)
  })

  test('in its shape is taken, and its connection stays', async () => {
    const { machine, opened } = answering(encodeJson(FRAME.ok, { tty: true, released: true, more: 1 }))

    const { conversation, ok } = await converse(machine, 'attach', {}, AbortSignal.timeout(3000))

    expect(ok).toEqual({ tty: true, released: true })
    expect(opened.map((one) => one.destroyed)).toEqual([false])
    conversation.close()
  })
})
