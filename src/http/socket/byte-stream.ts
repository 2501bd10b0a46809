import type { Duplex } from 'node:stream'
import { RAW_END } from '../../contract/forward.ts'
import { faultOrInternal, problemOf } from '../problem.ts'
import type { OpenBytes } from '../handler.ts'
import { Inbox } from './inbox.ts'
import { Sender } from './sender.ts'
import { CLOSE, type Behavior, type Ws } from './behavior.ts'

/** Bytes of a close frame's reason: 123 are allowed (RFC 6455, section 5.5), and a cut character may grow by two. */
const REASON_MAX = 120

/**
 * Says what went wrong, whole, in a message of text: bytes are never text, and a close frame holds the beginning alone.
 */
const tellFault = (ws: Ws, error: unknown): void => {
  ws.send(JSON.stringify(problemOf(faultOrInternal(error))))
}

const sayFault = (error: unknown): string => {
  const { code, message } = faultOrInternal(error)
  return Buffer.from(JSON.stringify({ code, message })).subarray(0, REASON_MAX).toString('utf8')
}

/** Resolves when the other end takes more, or is gone. */
const roomIn = (stream: Duplex): Promise<void> =>
  new Promise((resolve) => {
    const done = () => {
      stream.off('drain', done).off('close', done)
      resolve()
    }
    stream.once('drain', done).once('close', done)
  })

const ended = (stream: Duplex): Promise<void> =>
  stream.writableFinished || stream.destroyed
    ? Promise.resolve()
    : new Promise((resolve) => {
        stream.once('finish', resolve)
        stream.once('close', resolve)
      })

/**
 * Speaks forward and console: binary messages are bytes, an empty one is the end of its sender's half. There are no
 * windows, so a client that is far ahead is not read from until the guest has taken what waits.
 */
export const speakBytes = (ws: Ws, open: OpenBytes): Behavior => {
  const gone = new AbortController()
  const sender = new Sender(ws)
  let held = false
  const inbox = new Inbox(
    () => {
      ws.close(CLOSE.broken)
    },
    () => {
      if (!held) return
      held = false
      ws.resume()
    },
  )
  const opened = open(gone.signal)
  opened
    .then(async (stream) => {
      stream.on('error', () => undefined)
      for await (const chunk of stream.iterator({ destroyOnReturn: false }))
        if (!(await sender.send(chunk as Uint8Array))) return
      await sender.send(RAW_END) // its half has ended; the client's goes on until it ends too
      await ended(stream)
      ws.close(CLOSE.normal)
    })
    .catch((error: unknown) => {
      tellFault(ws, error)
      ws.close(CLOSE.broken, sayFault(error))
    })
  return {
    message: (message) => {
      const bytes = Buffer.from(message) // its memory is the socket's
      inbox.put(bytes.byteLength, async () => {
        const stream = await opened
        if (stream.writableEnded || stream.destroyed) return
        if (bytes.byteLength === 0) stream.end()
        else if (!stream.write(bytes)) await roomIn(stream)
      })
      if (!inbox.full || held) return
      held = true
      ws.pause()
    },
    close: () => {
      gone.abort()
      sender.close()
      opened.then(
        (stream) => {
          stream.destroy()
        },
        () => undefined,
      )
    },
    drained: () => {
      sender.drained()
    },
  }
}
