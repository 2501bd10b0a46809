/**
 * A stream that can say why it ends: an answer whose status has been sent already has no other way.
 *
 * Who accepts `FRAMED` gets, instead of the bare bytes, pieces of a 32-bit length (big endian) and so many bytes; a
 * length of 0 is the end. 0xffffffff stands before the length and the bytes of a problem (RFC 9457), which is the end
 * as well. Without either the stream is cut off.
 */
export const FRAMED = 'application/vnd.aerie.framed'

const PROBLEM = 0xffff_ffff
const PROBLEM_BYTES_MAX = 1024 * 1024

const lengthOf = (length: number): Buffer => {
  const it = Buffer.allocUnsafe(4)
  it.writeUInt32BE(length)
  return it
}

/** Frames a stream. `say` tells an error of it as the JSON of a problem. */
export const frame = (
  stream: ReadableStream<Uint8Array>,
  say: (error: unknown) => Promise<string>,
): ReadableStream<Uint8Array> => {
  const reader = stream.getReader()
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          let next = await reader.read()
          // A piece of no bytes would be the end; and whoever is asked and gives nothing is not asked again.
          while (!next.done && next.value.length === 0) next = await reader.read()
          if (next.done) {
            controller.enqueue(lengthOf(0))
            controller.close()
          } else controller.enqueue(Buffer.concat([lengthOf(next.value.length), next.value]))
        } catch (error) {
          const problem = Buffer.from(await say(error))
          controller.enqueue(Buffer.concat([lengthOf(PROBLEM), lengthOf(problem.length), problem]))
          controller.close()
        }
      },
      async cancel(reason) {
        await reader.cancel(reason)
      },
    },
    { highWaterMark: 0 },
  )
}

/**
 * Takes a framed stream apart. `problem` makes an error of the JSON of a problem, `cut` one of a stream that has no
 * end.
 */
export const unframe = (
  stream: ReadableStream<Uint8Array>,
  problem: (text: string) => Error,
  cut: (error: unknown) => Error,
): ReadableStream<Uint8Array> => {
  const reader = stream.getReader()
  let held: Buffer = Buffer.alloc(0)
  let left = 0
  const more = async (): Promise<void> => {
    const { done, value } = await reader.read().catch((error: unknown) => {
      throw cut(error)
    })
    if (done) throw cut(new Error('it ended in the middle'))
    const piece = Buffer.from(value.buffer, value.byteOffset, value.byteLength)
    held = held.length === 0 ? piece : Buffer.concat([held, piece])
  }
  const take = async (bytes: number): Promise<Buffer> => {
    while (held.length < bytes) await more()
    const taken = held.subarray(0, bytes)
    held = held.subarray(bytes)
    return taken
  }
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        if (left === 0) {
          left = (await take(4)).readUInt32BE()
          if (left === PROBLEM) {
            const size = (await take(4)).readUInt32BE()
            throw problem((await take(Math.min(size, PROBLEM_BYTES_MAX))).toString())
          }
          if (left === 0) {
            controller.close()
            await reader.cancel()
            return
          }
        }
        if (held.length === 0) await more()
        const piece = held.subarray(0, left)
        held = held.subarray(piece.length)
        left -= piece.length
        controller.enqueue(piece)
      },
      async cancel(reason) {
        await reader.cancel(reason)
      },
    },
    { highWaterMark: 0 },
  )
}
