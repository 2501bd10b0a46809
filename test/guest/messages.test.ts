import { describe, expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { TSchema } from '@sinclair/typebox'
import { FrameError } from '../../src/guest/frames.ts'
import { AgentEvent, answerOf, ANSWERS, ExitMessage, readAs } from '../../src/guest/messages.ts'

const vectors = JSON.parse(
  readFileSync(join(import.meta.dir, '../../native/protocol/golden/messages.json'), 'utf8'),
) as { name: string; message: string; body: Record<string, unknown>; invalid?: boolean }[]

/** The messages of the vectors that the host reads. */
const READ: Readonly<Record<string, TSchema>> = {
  event: AgentEvent,
  exit: ExitMessage,
  stat_ok: ANSWERS.stat,
  list_ok: ANSWERS.list,
  metrics: ANSWERS.metrics,
  copy_in_done: ANSWERS.copyIn,
  copy_out_ok: ANSWERS.copyOut,
}

describe('golden messages', () => {
  for (const [message, schema] of Object.entries(READ)) {
    const those = vectors.filter((vector) => vector.message === message)

    test(`there are some of ${message}`, () => {
      expect(those.length).toBeGreaterThan(0)
    })

    for (const vector of those) {
      test(vector.name, () => {
        if (vector.invalid === true) expect(() => readAs(schema, vector.body)).toThrow(FrameError)
        else expect(vector.body).toMatchObject(readAs(schema, structuredClone(vector.body)) as object)
      })
    }
  }
})

test('what a newer agent says more is dropped', () => {
  expect(readAs(ExitMessage, { code: 1, signal: null, message: null, cpu_ms: 5 })).toEqual({
    code: 1,
    signal: null,
    message: null,
  })
  expect(readAs(AgentEvent, { seq: 1, type: 'button', long: true })).toEqual({ seq: 1, type: 'button' })
})

test('an answer of another shape is a fault of the agent, not of the request', () => {
  expect(() => answerOf('stat', { exists: 'yes' })).toThrow(
    expect.objectContaining({ code: 'agent_unavailable', kind: 'unavailable' }) as Error,
  )
  expect(() => answerOf('list', { entries: 7, truncated: false })).toThrow('another shape')
})
