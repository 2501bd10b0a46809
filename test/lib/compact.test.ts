import { expect, test } from 'bun:test'
import { compactWhenQuiet } from '../../src/lib/compact.ts'

test('memory is collected once whenever a busy process has become quiet, and never while it works', async () => {
  // One step a look: how much the process has worked before it.
  const work = [100, 100, 0, 0, 0, 100, 0, 0]
  const collectedAt: number[] = []
  let looks = 0
  let spent = 0
  const ended = Promise.withResolvers<void>()
  const { stop } = compactWhenQuiet(
    5,
    () => {
      collectedAt.push(looks)
      spent += 50
    },
    () => {
      // Each look asks twice: before it decides, and after.
      const index = looks++ / 2 - 0.5
      if (Number.isInteger(index)) {
        if (index >= work.length) ended.resolve()
        spent += work[index] ?? 0
      }
      return spent
    },
  )
  await ended.promise
  stop()

  expect(collectedAt.map((look) => look / 2 - 1)).toEqual([2, 6])
})
