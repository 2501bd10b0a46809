import { expect, test } from 'bun:test'
import { frame, unframe } from '../../src/contract/framed.ts'

const PIECES = [Buffer.from('a'), Buffer.alloc(0), Buffer.alloc(100_000, 7), Buffer.from([255, 255, 255, 255])]

/** A stream of pieces that ends with an error, or well. */
const source = (pieces: readonly Uint8Array[], error?: Error): ReadableStream<Uint8Array> => {
  const left = [...pieces]
  return new ReadableStream<Uint8Array>(
    {
      pull(controller) {
        const piece = left.shift()
        if (piece) controller.enqueue(piece)
        else if (error) controller.error(error)
        else controller.close()
      },
    },
    { highWaterMark: 0 },
  )
}
/** What a stream held, and what ended it. */
const read = async (stream: ReadableStream<Uint8Array>): Promise<{ bytes: Buffer; end: string }> => {
  const bytes: Uint8Array[] = []
  try {
    for await (const piece of stream) bytes.push(piece.slice())
    return { bytes: Buffer.concat(bytes), end: 'well' }
  } catch (error) {
    return { bytes: Buffer.concat(bytes), end: (error as Error).message }
  }
}
const framed = async (error?: Error) =>
  (await read(frame(source(PIECES, error), (why) => Promise.resolve(`{"title":"${(why as Error).message}"}`)))).bytes
/** The framed bytes, as a network cuts them: into pieces of so many. */
const arrive = (bytes: Buffer, size: number) =>
  unframe(
    source(
      Array.from({ length: Math.ceil(bytes.length / size) }, (_, at) => bytes.subarray(at * size, (at + 1) * size)),
    ),
    (text) => new Error(`problem ${text}`),
    () => new Error('cut'),
  )

test.each([[1000], [3], [1 << 20]])('a framed stream arrives whole in pieces of %d bytes', async (size) => {
  const { bytes, end } = await read(arrive(await framed(), size))

  expect(end).toBe('well')
  expect(bytes.equals(Buffer.concat(PIECES))).toBe(true)
})

test('an error of the stream arrives as itself, behind what came before it', async () => {
  const { bytes, end } = await read(arrive(await framed(new Error('the guest says no')), 1000))

  expect(end).toBe('problem {"title":"the guest says no"}')
  expect(bytes.equals(Buffer.concat(PIECES))).toBe(true)
})

test('a framed stream that is cut anywhere says so', async () => {
  const whole = await framed(new Error('x'))
  for (const length of [0, 1, 3, 4, 5, 6, 50_000, whole.length - 30, whole.length - 1])
    expect((await read(arrive(whole.subarray(0, length), 1000))).end).toBe('cut')
})
