import { once } from 'node:events'
import type { Duplex } from 'node:stream'
import { agentUnavailable } from '../hypervisor/errors.ts'
import type { Machine } from '../hypervisor/driver.ts'
import { Fault } from '../lib/fault.ts'
import { orAbort } from '../lib/wait.ts'
import { guestPathNotFound, guestRefused, guestUserNotFound } from './errors.ts'
import { AGENT_PORT, decodeJson, encodeOpen, FRAME, FrameError, FrameReader, type Frame, type Kind } from './frames.ts'

/**
 * One connection to the agent, cut into frames, with back-pressure both ways: `send` resolves when the peer has room, and the peer
 * is held while nobody takes frames.
 */
export class Conversation {
  readonly #stream: Duplex
  readonly #frames: AsyncGenerator<Frame>
  #error: Error | undefined

  constructor(stream: Duplex) {
    this.#stream = stream
    this.#frames = this.#read()
    stream.on('error', (error: Error) => { this.#error ??= error })
  }

  async *#read(): AsyncGenerator<Frame> {
    const reader = new FrameReader()
    for await (const chunk of this.#stream) yield* reader.push(chunk as Buffer)
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
    if (!this.#stream.write(frame)) await Promise.race([once(this.#stream, 'drain'), once(this.#stream, 'close')])
  }

  /** Ends our half; the peer's frames still come. */
  endWriting(): void { this.#stream.end() }

  close(): void { this.#stream.destroy() }

  /** The stream itself, for what follows an `ok` without frames. Take it before any frame after the `ok` is read. */
  get stream(): Duplex { return this.#stream }

  get closed(): boolean { return this.#stream.destroyed }
}

/** The agent's `error` as a fault of ours. What it says is the guest's word: shown, never trusted. */
export const asFault = (body: Record<string, unknown>, path: string | undefined): Fault => {
  const code = String(body['code'] ?? 'internal'), message = String(body['message'] ?? 'no reason given').slice(0, 1000)
  switch (code) {
    case 'not_found': return guestPathNotFound({ path: path ?? '', reason: message })
    case 'user_not_found': return guestUserNotFound({ reason: message })
    case 'not_ready': case 'busy': return agentUnavailable({ reason: message })
    default: return guestRefused({ reason: message, agent_code: code })
  }
}

/**
 * Opens a conversation of one kind and answers with the body of the agent's `ok`.
 *
 * @throws `agent_unavailable` where no agent answers; the agent's own refusal as `guest_*`
 */
export const converse = async (
  machine: Machine, kind: Kind, body: Record<string, unknown>, signal: AbortSignal,
): Promise<{ readonly conversation: Conversation; readonly ok: Record<string, unknown> }> => {
  const stream = await machine.connect(AGENT_PORT, signal)
  const conversation = new Conversation(stream)
  try {
    await conversation.send(encodeOpen(kind, body))
    const frame = await orAbort(conversation.next(), signal)
    if (!frame) throw agentUnavailable({ reason: 'it closed the connection' })
    if (frame.type === FRAME.error) throw asFault(decodeJson(frame), typeof body['path'] === 'string' ? body['path'] : undefined)
    if (frame.type !== FRAME.ok) throw new FrameError('frame_payload_invalid', `frame 0x${frame.type.toString(16)} where an ok was expected`)
    return { conversation, ok: decodeJson(frame) }
  } catch (error) {
    conversation.close()
    if (error instanceof Fault || signal.aborted) throw error
    throw agentUnavailable({ reason: error instanceof Error ? error.message : String(error) }, error)
  }
}
