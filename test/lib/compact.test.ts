import { expect, test } from 'bun:test'
import { compactWhenQuiet } from '../../src/lib/compact.ts'

const work = (ms: number): void => {
  for (const until = performance.now() + ms; performance.now() < until; );
}

test('memory is collected once when a busy process has become quiet, and not while it works', async () => {
  let collected = 0
  const { stop } = compactWhenQuiet(300, () => {
    collected++
  })
  try {
    for (let i = 0; i < 40; i++) {
      work(15)
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    expect(collected).toBe(0)

    for (const until = Date.now() + 5000; collected === 0 && Date.now() < until; ) await Bun.sleep(50)
    await Bun.sleep(700)
    expect(collected).toBe(1)
  } finally {
    stop()
  }
})
