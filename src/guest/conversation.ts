import { Duplex } from 'node:stream'
import type { Static } from '@sinclair/typebox'
import { agentUnavailable } from '../hypervisor/errors.ts'
import type { Machine } from '../hypervisor/driver.ts'
import { Fault } from '../lib/fault.ts'
import { share } from '../lib/turn.ts'
import { deferred, orAbort, type Deferred } from '../lib/promise.ts'
import { guestBusy, guestPathNotFound, guestRefused, guestUserNotFound, requestTooLarge } from './errors.ts'
import {
  AGENT_PORT,
  decodeJson,
  encode,
  encodeEmpty,
  encodeOpen,
  FRAME,
  KIND,
  FrameError,
  FrameReader,
  ARGUMENTS_MAX,
  type Frame,
  type Kind,
} from './frames.ts'
import { messageOf } from '../lib/thrown.ts'
import { type ANSWERS, answerOf } from './messages.ts'

/**
 * One connection to the agent, cut into frames, with back-pressure both ways: `send` resolves when the peer has room,
 * and the peer is held while nobody takes frames.
 */
export class Conversation {
  readonly #stream: Duplex
  readonly #frames: AsyncGenerator<Frame>
  #error: Error | undefined
  /** Resolved when the peer has taken what was written; one for all who wait. */
  #room: Deferred<void> | undefined

  /** @param from  who is at the other end */
  constructor(stream: Duplex, from: 'agent' | 'host' = 'agent') {
    this.#stream = stream
    this.#frames = this.#read(from)
    stream.on('error', (error: Error) => {
      this.#error ??= error
    })
    const wake = () => {
      this.#room?.resolve()
      this.#room = undefined
    }
    stream.on('drain', wake)
    stream.on('close', wake)
  }

  async *#read(from: 'agent' | 'host'): AsyncGenerator<Frame> {
    const reader = new FrameReader(from)
    for await (const chunk of this.#stream) {
      for (const frame of reader.push(chunk as Buffer)) {
        yield frame
        const turn = share()
        if (turn) await turn
      }
    }
    reader.end()
  }

  /** Frames until the peer ends. Reading is what lets the peer go on. */
  async next(): Promise<Frame | undefined> {
    const { done, value } = await this.#frames.next()
    return done === true ? undefined : value
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Frame> {
    for (let frame = await this.next(); frame; frame = await this.next()) yield frame
  }

  async send(frame: Uint8Array): Promise<void> {
    if (this.#stream.destroyed || !this.#stream.writable) throw this.#error ?? new Error('connection is closed')
    if (!this.#stream.write(frame)) await (this.#room ??= deferred()).promise
  }

  /** Ends our half; the peer's frames still come. */
  endWriting(): void {
    this.#stream.end()
  }

  close(): void {
    this.#stream.destroy()
  }

  /**
   * Gives the bytes that follow an `ok`, as a stream of their own: data frames one way, data and end of file the other
   * (kind proxy).
   */
  raw(): Duplex {
    const conversation = this
    let over = false
    return new Duplex({
      allowHalfOpen: true,
      read() {
        void conversation.next().then(
          (frame) => {
            if (frame?.type === FRAME.stdout) {
              this.push(Buffer.from(frame.payload))
              return
            }
            if (over) return
            over = true
            this.push(null)
          },
          (error: Error) => {
            this.destroy(error)
          },
        )
      },
      write(chunk: Buffer, _encoding, done) {
        sendParts(conversation, chunk).then(() => {
          done()
        }, done)
      },
      final(done) {
        conversation.send(encodeEmpty(FRAME.eof)).then(() => {
          done()
        }, done)
      },
      destroy(error, done) {
        conversation.close()
        done(error)
      },
    })
  }

  get closed(): boolean {
    return this.#stream.destroyed
  }
}

const RAW_CHUNK = 65_536
const sendParts = async (conversation: Conversation, bytes: Buffer): Promise<void> => {
  for (let at = 0; at < bytes.byteLength; at += RAW_CHUNK)
    await conversation.send(encode(FRAME.stdin, bytes.subarray(at, at + RAW_CHUNK)))
}

/** Makes a fault of ours of the agent's `error`. What it says is the guest's word: shown, never trusted. */
export const agentFault = (body: Record<string, unknown>, path: string | undefined): Fault => {
  const code = String(body['code'] ?? 'internal')
  const message = String(body['message'] ?? 'no reason given').slice(0, 1000)
  switch (code) {
    case 'not_found':
      return path === undefined
        ? guestRefused({ reason: message, agent_code: code })
        : guestPathNotFound({ path, reason: message })
    case 'user_not_found':
      return guestUserNotFound({ reason: message })
    case 'busy':
      return guestBusy({ reason: message })
    case 'not_ready':
      return agentUnavailable({ reason: message })
    default:
      return guestRefused({ reason: message, agent_code: code })
  }
}

/**
 * Says why the agent was not reached. What its caller gave up is the caller's own reason; a time that was over is the
 * agent's.
 */
const sayAgent = (error: unknown, signal: AbortSignal): unknown => {
  if (error instanceof Fault) return error
  const late = signal.reason instanceof DOMException && signal.reason.name === 'TimeoutError'
  if (signal.aborted && !late) return error
  const reason = late ? 'it does not answer' : messageOf(error)
  return agentUnavailable({ reason }, error)
}

const firstFrame = (kind: Kind, body: Record<string, unknown>): Uint8Array => {
  try {
    return encodeOpen(kind, body)
  } catch (error) {
    if (error instanceof FrameError) throw requestTooLarge({ limit: ARGUMENTS_MAX }, error)
    throw error
  }
}

/**
 * Opens a conversation of one kind, without waiting for its answer.
 *
 * @throws `agent_unavailable` where no agent answers; `request_invalid` where the request is larger than an agent takes
 */
export const open = async (
  machine: Machine,
  kind: Kind,
  body: Record<string, unknown>,
  signal: AbortSignal,
): Promise<Conversation> => {
  const first = firstFrame(kind, body)
  const stream = await machine.connect(AGENT_PORT, signal).catch((error: unknown) => {
    throw sayAgent(error, signal)
  })
  const conversation = new Conversation(stream)
  try {
    await conversation.send(first)
    return conversation
  } catch (error) {
    conversation.close()
    throw sayAgent(error, signal)
  }
}

/**
 * Reads the body of the agent's `ok`.
 *
 * @throws the agent's own refusal as `guest_*`; `agent_unavailable` where it says anything else, or goes away. The
 * connection is closed then
 */
export const accepted = async (
  conversation: Conversation,
  path: string | undefined,
  signal: AbortSignal,
): Promise<Record<string, unknown>> => {
  try {
    const frame = await orAbort(conversation.next(), signal)
    if (!frame) throw agentUnavailable({ reason: 'it closed the connection' })
    if (frame.type === FRAME.error) throw agentFault(decodeJson(frame), path)
    if (frame.type !== FRAME.ok)
      throw new FrameError('frame_payload_invalid', `frame 0x${frame.type.toString(16)} where an ok was expected`)
    return decodeJson(frame)
  } catch (error) {
    conversation.close()
    throw sayAgent(error, signal)
  }
}

/** The kinds of conversation that begin with an answer, by the name of its shape. */
export type Question = Exclude<keyof typeof ANSWERS, 'copyIn'>

/**
 * Opens a conversation and waits for its `ok`, which has its shape. An answer without it costs the connection.
 *
 * @throws as `open` and `accepted`
 */
export const converse = async <Q extends Question>(
  machine: Machine,
  question: Q,
  body: Record<string, unknown>,
  signal: AbortSignal,
): Promise<{ readonly conversation: Conversation; readonly ok: Static<(typeof ANSWERS)[Q]> }> => {
  const conversation = await open(machine, KIND[question], body, signal)
  const ok = await accepted(conversation, typeof body['path'] === 'string' ? body['path'] : undefined, signal)
  try {
    return { conversation, ok: answerOf(question, ok) }
  } catch (error) {
    conversation.close()
    throw error
  }
}
