import { connect } from 'node:net'
import { orAbort } from '../../../lib/promise.ts'
import { descriptorOf, sendFds } from '../../../linux/socket.ts'

/** An HTTP answer before anything of it is believed. */
export interface RawAnswer {
  readonly status: number
  readonly body: string
}

/**
 * Sends one PUT over a Unix socket of its own, with descriptors: fetch has no way to send them. The answer is read to
 * its end (`connection: close`), of at most `bytesMax`.
 *
 * @throws Error: nobody answers, or no HTTP; the signal's reason
 */
export const requestWithFds = (
  path: string,
  target: string,
  body: string,
  fds: readonly number[],
  bytesMax: number,
  signal: AbortSignal,
): Promise<RawAnswer> => {
  const bytes = Buffer.from(body)
  const head = Buffer.from(
    `PUT ${target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${bytes.length}\r\n\r\n`,
  )
  const socket = connect(path)
  const answer = new Promise<RawAnswer>((resolve, reject) => {
    const parts: Buffer[] = []
    let length = 0
    socket.once('connect', () => {
      try {
        // The descriptors travel with the first byte; a new socket takes a request this small whole.
        const request = Buffer.concat([head, bytes])
        const sent = sendFds(descriptorOf(socket), request, fds)
        if (sent < request.length) socket.write(request.subarray(sent))
      } catch (error) {
        reject(error as Error)
      }
    })
    socket.on('data', (part: Buffer) => {
      parts.push(part)
      length += part.length
      if (length > bytesMax) reject(new Error(`the VMM answers more than ${bytesMax} bytes`))
    })
    socket.once('error', reject)
    socket.once('close', () => {
      try {
        resolve(parse(Buffer.concat(parts).toString('utf8')))
      } catch (error) {
        reject(error as Error)
      }
    })
  })
  return orAbort(answer, signal).finally(() => {
    socket.destroy()
  })
}

const parse = (text: string): RawAnswer => {
  const end = text.indexOf('\r\n\r\n')
  const status = /^HTTP\/1\.1 (\d{3}) /.exec(text)?.[1]
  if (end < 0 || status === undefined) throw new Error('the VMM does not answer')
  return { status: Number(status), body: text.slice(end + 4) }
}
