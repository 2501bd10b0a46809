import { describe, expect, test } from 'bun:test'
import { Duplex } from 'node:stream'
import { converse } from '../../src/guest/conversation.ts'
import { encodeJson, FRAME } from '../../src/guest/frames.ts'
import { patiently } from '../../src/guest/patience.ts'
import type { Machine } from '../../src/hypervisor/driver.ts'

/**
 * An agent that takes connections at once and answers them one after the other, each after `everyMs`; never where that
 * is undefined.
 */
const slowAgent = (everyMs: number | undefined): Machine => {
  let last = Promise.resolve()
  const connect = () => {
    const stream = new Duplex({
      read: () => undefined,
      write: (_chunk, _encoding, done) => {
        done()
      },
    })
    if (everyMs !== undefined)
      last = last
        .then(() => new Promise((resolve) => setTimeout(resolve, everyMs)))
        .then(() => {
          stream.push(encodeJson(FRAME.ok, { tty: false }))
        })
    return Promise.resolve(stream)
  }
  return { connect } as Pick<Machine, 'connect'> as Machine
}
const ask = (machine: Machine, ms: number, client?: AbortSignal, longestMs?: number) =>
  patiently(machine, ms, client, (signal) => converse(machine, 'attach', {}, signal), longestMs)

describe('a burst of conversations', () => {
  test('waits for its turn at a slow agent, however long the whole of it takes', async () => {
    const machine = slowAgent(40)

    const answers = await Promise.all(Array.from({ length: 20 }, () => ask(machine, 400)))

    expect(answers.map(({ ok }) => ok)).toEqual(Array.from({ length: 20 }, () => ({ tty: false })))
  })

  test('is told when the agent answers nobody any more', async () => {
    const machine = slowAgent(undefined)

    const asked = await Promise.allSettled(Array.from({ length: 5 }, () => ask(machine, 50)))

    for (const one of asked)
      expect(one).toMatchObject({
        reason: {
          code: 'agent_unavailable',
          message: 'Cannot reach the agent in the guest: it does not answer',
        },
      })
  })

  test('does not keep one for ever that is not answered while others are', async () => {
    const [lost, well] = [slowAgent(undefined), slowAgent(5)]
    const machine = { connect: lost.connect } as Machine
    const forgotten = ask(machine, 60, undefined, 200)
    let failed: unknown
    void forgotten.catch((error: unknown) => {
      failed = error
    })
    Object.assign(machine, { connect: well.connect })
    const began = performance.now()

    while (failed === undefined) await ask(machine, 60)

    expect(failed).toMatchObject({ code: 'agent_unavailable' })
    expect(performance.now() - began).toBeGreaterThan(150)
  })

  test('ends when its caller goes, for the reason of theirs', async () => {
    const machine = slowAgent(undefined)
    const caller = new AbortController()

    const asked = ask(machine, 60_000, caller.signal)
    caller.abort(new Error('left'))

    await expect(asked).rejects.toThrow('left')
  })
})
