import { expect, test } from 'bun:test'
import { Serial } from '../../src/lib/serial.ts'

test('work of one key runs one after the other, in the order of the calls', async () => {
  const queue = new Serial()
  const said: string[] = []
  const work = (name: string, ms: number) => async () => {
    said.push(`${name} begins`)
    await Bun.sleep(ms)
    said.push(`${name} ends`)
    return name
  }

  const results = await Promise.all([
    queue.run('vm', work('a', 10)),
    queue.run('vm', work('b', 1)),
    queue.run('vm', work('c', 0)),
  ])

  expect(results).toEqual(['a', 'b', 'c'])
  expect(said).toEqual(['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends'])
})

test('work of two keys runs side by side', async () => {
  const queue = new Serial()
  const first = Promise.withResolvers<string>()

  const waiting = queue.run('one', () => first.promise)
  const other = await queue.run('two', () => Promise.resolve('done'))
  first.resolve(other)

  expect(await waiting).toBe('done')
})

test('work that rejects, or throws at once, does not stop the queue, and its caller alone hears of it', async () => {
  const queue = new Serial()

  const rejected = queue.run('vm', () => Promise.reject(new Error('no')))
  const thrown = queue.run('vm', () => {
    throw new Error('never')
  })
  const fine = queue.run('vm', () => Promise.resolve('fine'))

  await expect(rejected).rejects.toThrow('no')
  await expect(thrown).rejects.toThrow('never')
  expect(await fine).toBe('fine')
})

test('at no time do two works of one key run at once, whatever calls come when', async () => {
  const queue = new Serial()
  let running = 0
  let most = 0
  let done = 0
  const work = async () => {
    most = Math.max(most, ++running)
    if (done % 3 === 0) await Bun.sleep(0)
    running--
    if (++done % 7 === 0) throw new Error('some fail')
  }

  await Promise.allSettled(
    Array.from({ length: 200 }, async (_, index) => {
      await Bun.sleep(index % 5)
      await queue.run('vm', work)
    }),
  )

  expect(done).toBe(200)
  expect(most).toBe(1)
})

test('idle waits for all that is queued, and a key without work takes no memory', async () => {
  const queue = new Serial()
  let done = 0
  for (let key = 0; key < 50; key++)
    void queue.run(`vm ${key % 10}`, async () => {
      await Bun.sleep(1)
      done++
    })
  queue.run('vm 1', () => Promise.reject(new Error('no'))).catch(() => undefined)
  expect(queue.busy).toBe(10)

  await queue.idle()

  expect(done).toBe(50)
  expect(queue.busy).toBe(0)
})

test('a key whose work begins as the last one ends is still one queue', async () => {
  const queue = new Serial()
  const said: number[] = []
  for (let round = 0; round < 20; round++) {
    await queue.run('vm', () => {
      said.push(round)
      return Promise.resolve()
    })
    void queue.run('vm', async () => {
      await Bun.sleep(0)
      said.push(round + 0.5)
    })
  }
  await queue.idle()

  expect(said).toEqual([...said].sort((a, b) => a - b))
})
