import { EventEmitter } from 'node:events'
import { connect, type Socket } from 'node:net'
import { Type, type Static, type TSchema } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { deferred, orAbort } from '../../../lib/promise.ts'
import { messageOf } from '../../../lib/thrown.ts'
import { eachLine, type LineLimits } from './lines.ts'

/*
 * QEMU's machine protocol: one JSON object a line (docs/interop/qmp-spec.txt). A guest that has taken its QEMU over
 * says here what it likes: every line is checked by a schema before it is looked at, and what is wrong ends this
 * connection and nothing else.
 */

const LIMITS: LineLimits = { lengthMax: 65_536, rate: { perSecond: 500, burst: 5000 } }
const Word = Type.String({ maxLength: 128 })

const Greeting = Type.Object({ QMP: Type.Object({}) })
const QmpEvent = Type.Object({ event: Word, data: Type.Optional(Type.Record(Type.String(), Type.Unknown())) })
const Refused = Type.Object({ id: Type.Integer(), error: Type.Object({ desc: Type.Optional(Type.String()) }) })
const Answered = Type.Object({ id: Type.Integer(), return: Type.Unknown() })
/** An error that belongs to no command: what was written was no JSON. We write none such. */
const Message = Type.Union([Greeting, QmpEvent, Refused, Answered])
type Message = Static<typeof Message>

/** The longest text of QEMU's that an error of ours repeats, in UTF-16 units. */
const SAID_MAX = 1000

/** QEMU says what QEMU never says: it is not QEMU any more. */
export class QmpBroken extends Error {
  override name = 'QmpBroken'
}

/** Reads what an event says where it has the shape that QEMU gives it; undefined where not. */
export const readEvent = <T extends TSchema>(shape: T, data: unknown): Static<T> | undefined =>
  Value.Check(shape, data) ? data : undefined

type Data = Readonly<Record<string, unknown>>

/** One connection. `close` is emitted once, with what was wrong where something was. */
export class Qmp extends EventEmitter<{ event: [name: string, data: Data]; close: [broken: QmpBroken | undefined] }> {
  readonly #socket: Socket
  readonly #answers = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>()
  readonly #greeting = deferred<void>()
  #next = 1
  #closed: Error | undefined
  #closing = false

  private constructor(socket: Socket) {
    super()
    this.#socket = socket
    socket.on('error', () => undefined)
    void eachLine(socket, LIMITS, (line) => {
      this.#take(line)
    }).then(
      () => {
        this.#end(undefined)
      },
      (error: unknown) => {
        const hungUp = error instanceof Error && 'code' in error // the socket's own errors have codes
        this.#end(hungUp || this.#closing ? undefined : asBroken(error))
      },
    )
  }

  /**
   * Connects to QEMU's monitor. @throws QmpBroken: nobody answers as QEMU does; Error: nobody answers; the signal's
   * reason
   */
  static async connect(path: string, signal: AbortSignal): Promise<Qmp> {
    const socket = connect(path)
    const refused = new Promise<never>((_, reject) => {
      socket.once('error', reject)
    })
    const qmp = new Qmp(socket)
    try {
      await orAbort(Promise.race([qmp.#greeting.promise, refused]), signal)
      await qmp.call('qmp_capabilities', {}, Type.Unknown(), signal)
      return qmp
    } catch (error) {
      socket.destroy()
      throw error
    }
  }

  #end(broken: QmpBroken | undefined): void {
    if (this.#closed) return
    const closed = broken ?? new Error('QMP was closed')
    this.#closed = closed
    this.#socket.destroy()
    this.#greeting.reject(closed)
    for (const answer of this.#answers.values()) answer.reject(closed)
    this.#answers.clear()
    this.emit('close', broken)
  }

  #take(line: string): void {
    if (line.trim() === '') return
    const message = parse(line)
    if ('QMP' in message) this.#greeting.resolve()
    else if ('event' in message) this.emit('event', message.event, message.data ?? {})
    else this.#answer(message)
  }

  #answer(message: Static<typeof Refused> | Static<typeof Answered>): void {
    const answer = this.#answers.get(message.id) // absent: whoever asked has given up
    this.#answers.delete(message.id)
    if ('error' in message) answer?.reject(new Error((message.error.desc ?? 'QMP refused').slice(0, SAID_MAX)))
    else answer?.resolve(message.return)
  }

  /** Asks, and believes an answer of this shape alone. @throws Error: QEMU refuses, or is gone; QmpBroken */
  async call<T extends TSchema>(execute: string, args: Data, shape: T, signal: AbortSignal): Promise<Static<T>> {
    const id = this.#next++
    const asked = new Promise<unknown>((resolve, reject) => {
      if (this.#closed || this.#socket.destroyed) {
        reject(this.#closed ?? new Error('QMP was closed'))
        return
      }
      this.#answers.set(id, { resolve, reject })
      this.#socket.write(`${JSON.stringify({ execute, arguments: args, id })}\n`)
    })
    try {
      const answer = await orAbort(asked, signal)
      if (Value.Check(shape, answer)) return answer
    } finally {
      this.#answers.delete(id)
    }
    const broken = new QmpBroken(`QEMU answers nonsense to ${execute}`)
    this.#end(broken)
    throw broken
  }

  close(): void {
    this.#closing = true
    this.#socket.destroy()
  }
}

/** Reads one line of QEMU's. @throws QmpBroken */
const parse = (line: string): Message => {
  let message: unknown
  try {
    message = JSON.parse(line)
  } catch (error) {
    throw new QmpBroken('QEMU says what is no JSON', { cause: error })
  }
  if (!Value.Check(Message, message)) throw new QmpBroken('QEMU says what is no message of its protocol')
  return message
}

const asBroken = (error: unknown): QmpBroken => (error instanceof QmpBroken ? error : new QmpBroken(messageOf(error)))
