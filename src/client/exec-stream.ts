import { CHANNEL, type ExecControl } from '../contract/exec.ts'
import { deferred } from '../lib/promise.ts'
import { sayEndpoint, type Endpoint } from './endpoint.ts'
import { answerInvalid, connectionLost, faultOfProblem } from './errors.ts'
import { openSocket } from './websocket.ts'

/** How a command ended: its code, the signal that ended it, and a sentence where it could not be run at all. */
export interface Ended {
  readonly code: number
  readonly signal: number | null
  readonly message: string | null
}
export type Output = { readonly stream: 'stdout' | 'stderr'; readonly bytes: Uint8Array }

/**
 * One exec or attach: a life of `started`, output and `exit`, over one WebSocket (contract/exec.ts, CHANNEL).
 *
 * INVARIANTS
 * - `output` yields every byte that the guest sent before it returns how the command ended; without an exit it throws.
 * - A reader of `output` that is slow stops the guest's writer; a guest that does not read stops `write`, and never a
 *   signal.
 */
export interface Exec {
  output(): AsyncGenerator<Output, Ended>
  /**
   * Resolves when the bytes are on their way; to a command that has ended they are dropped, as a closed pipe's reader
   * would.
   */
  write(bytes: Uint8Array): Promise<void>
  eof(): Promise<void>
  resize(cols: number, rows: number): void
  signal(number: number): void
  /** Goes away: the guest's command hears of it, its output is not waited for. */
  close(): void
}

const CHUNK = 32 * 1024

const frame = (channel: number, bytes: Uint8Array): Uint8Array => {
  const message = new Uint8Array(bytes.length + 1)
  message[0] = channel
  message.set(bytes, 1)
  return message
}

/** Opens the WebSocket of an exec or attach and sends its start. @throws the daemon's fault */
export const openExec = async (endpoint: Endpoint, target: string, start: object): Promise<Exec> => {
  const said = sayEndpoint(endpoint)
  const socket = await openSocket(endpoint, target)
  await socket.send(JSON.stringify(start))
  let credit = 0
  let over = false
  let more = deferred<void>()

  const control = (message: ExecControl) => socket.send(frame(CHANNEL.control, Buffer.from(JSON.stringify(message))))
  const readControl = (bytes: Uint8Array): ExecControl => {
    try {
      return JSON.parse(Buffer.from(bytes).toString('utf8')) as ExecControl
    } catch (error) {
      throw answerInvalid({ endpoint: said, reason: 'a control message is not JSON' }, error)
    }
  }

  async function* output(): AsyncGenerator<Output, Ended> {
    try {
      for await (const message of socket.messages()) {
        const bytes = typeof message === 'string' ? frame(CHANNEL.control, Buffer.from(message)) : message
        const rest = bytes.subarray(1)
        if (bytes[0] === CHANNEL.stdout) yield { stream: 'stdout', bytes: rest }
        else if (bytes[0] === CHANNEL.stderr) yield { stream: 'stderr', bytes: rest }
        else if (bytes[0] === CHANNEL.control) {
          const word = readControl(rest)
          if (word.type === 'exit') return { code: word.code, signal: word.signal, message: word.message }
          if (word.type === 'error') throw faultOfProblem({ ...word }, 'unavailable')
          if (word.type === 'window') {
            credit += word.bytes
            more.resolve()
            more = deferred()
          }
        }
      }
    } finally {
      over = true
      more.resolve()
    }
    throw connectionLost({ endpoint: said, reason: 'it ended before the command did' })
  }

  return {
    output,
    async write(bytes) {
      for (let at = 0; at < bytes.length && !over; ) {
        while (credit <= 0 && !over) await more.promise
        if (over) return
        const part = bytes.subarray(at, at + Math.min(CHUNK, credit))
        credit -= part.length
        at += part.length
        await socket.send(frame(CHANNEL.stdin, part))
      }
    },
    async eof() {
      if (!over) await control({ type: 'eof' })
    },
    resize(cols, rows) {
      void control({ type: 'resize', cols, rows })
    },
    signal(number) {
      void control({ type: 'signal', signal: number })
    },
    close() {
      over = true
      more.resolve()
      socket.close()
    },
  }
}
