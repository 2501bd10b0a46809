import { EventEmitter } from 'node:events'
import { connect, type Socket } from 'node:net'
import { orAbort } from '../../../lib/wait.ts'

export interface QmpEvent {
  readonly event: string
  readonly data: Readonly<Record<string, unknown>>
}
interface Message {
  readonly QMP?: unknown
  readonly return?: unknown
  readonly error?: { readonly desc?: string }
  readonly event?: string
  readonly data?: Readonly<Record<string, unknown>>
  readonly id?: number
}

/** Of one line: a VMM that a guest has taken over could send anything. */
const LINE_MAX = 1_048_576

/** QEMU's machine protocol: one JSON object a line (docs/interop/qmp-spec.txt). */
export class Qmp extends EventEmitter<{ event: [QmpEvent]; close: [] }> {
  readonly #socket: Socket
  readonly #answers = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>()
  #greeted: (() => void) | undefined
  #next = 1
  #line = ''

  private constructor(socket: Socket) {
    super()
    this.#socket = socket
    socket.setEncoding('utf8')
    socket.on('data', (text) => {
      this.#take(String(text))
    })
    socket.on('error', () => undefined)
    socket.on('close', () => {
      for (const answer of this.#answers.values()) answer.reject(new Error('QMP was closed'))
      this.#answers.clear()
      this.emit('close')
    })
  }

  static async connect(path: string, signal: AbortSignal): Promise<Qmp> {
    const socket = connect(path)
    const qmp = new Qmp(socket)
    try {
      await orAbort(
        new Promise<void>((resolve, reject) => {
          qmp.#greeted = resolve
          socket.once('error', reject)
          socket.once('close', () => {
            reject(new Error('QMP was closed'))
          })
        }),
        signal,
      )
      await qmp.call('qmp_capabilities', {}, signal)
      return qmp
    } catch (error) {
      socket.destroy()
      throw error
    }
  }

  #take(text: string): void {
    this.#line += text
    if (this.#line.length > LINE_MAX) {
      this.#socket.destroy()
      return
    }
    const lines = this.#line.split('\n')
    this.#line = lines.pop() ?? ''
    for (const line of lines) {
      if (line.trim() === '') continue
      let message: Message
      try {
        message = JSON.parse(line) as Message
      } catch {
        this.#socket.destroy()
        return
      }
      if (message.QMP !== undefined) this.#greeted?.()
      else if (message.event !== undefined) this.emit('event', { event: message.event, data: message.data ?? {} })
      else if (message.id !== undefined) {
        const answer = this.#answers.get(message.id)
        this.#answers.delete(message.id)
        if (message.error) answer?.reject(new Error(message.error.desc ?? 'QMP refused'))
        else answer?.resolve(message.return)
      }
    }
  }

  call(execute: string, args: Readonly<Record<string, unknown>>, signal: AbortSignal): Promise<unknown> {
    const id = this.#next++
    return orAbort(
      new Promise((resolve, reject) => {
        if (this.#socket.destroyed) {
          reject(new Error('QMP was closed'))
          return
        }
        this.#answers.set(id, { resolve, reject })
        this.#socket.write(`${JSON.stringify({ execute, arguments: args, id })}\n`)
      }),
      signal,
    ).finally(() => {
      this.#answers.delete(id)
    })
  }

  close(): void {
    this.#socket.destroy()
  }
}
