import { connect, type Socket } from 'node:net'
import { deferred, orAbort, type Deferred } from '../../../lib/promise.ts'

/** The longest answer, in bytes: a VMM that a guest has taken over could send anything. Ours are numbers. */
const LINE_MAX = 256

/** A width in bytes: 1, 2 or 4. */
type Width = 1 | 2 | 4
const LETTER = { 1: 'b', 2: 'w', 4: 'l' } as const
const HEX = /^(?:0x)?([0-9a-f]{1,16})$/i

/**
 * QEMU's test protocol, a line each way (softmmu/qtest.c): what a processor of the guest would read and write, done for
 * it while it stands still. Accesses are of the machine's address space: guest memory, ports, registers of devices.
 */
export class Qtest {
  readonly #socket: Socket
  readonly #signal: AbortSignal
  readonly #waiting: Deferred<string>[] = []
  #line = ''

  private constructor(socket: Socket, signal: AbortSignal) {
    this.#socket = socket
    this.#signal = signal
    socket.setEncoding('utf8')
    socket.on('data', (text) => {
      this.#take(String(text))
    })
    socket.on('error', () => undefined)
    socket.on('close', () => {
      for (const one of this.#waiting.splice(0)) one.reject(new Error('QEMU hung up'))
    })
  }

  /** Connects to the qtest socket. @throws ENOENT, ECONNREFUSED: no such socket, a machine of before it had one */
  static async connect(path: string, signal: AbortSignal): Promise<Qtest> {
    const socket = connect(path)
    const qtest = new Qtest(socket, signal)
    try {
      await orAbort(
        new Promise<void>((resolve, reject) => {
          socket.once('connect', resolve)
          socket.once('error', reject)
        }),
        signal,
      )
      return qtest
    } catch (error) {
      socket.destroy()
      throw error
    }
  }

  #take(text: string): void {
    const lines = (this.#line + text).split('\n')
    this.#line = lines.pop() ?? ''
    for (const line of lines) {
      const asked = this.#waiting.shift()
      if (asked === undefined || line.length > LINE_MAX) {
        asked?.reject(new Error('QEMU answers nonsense'))
        this.#socket.destroy() // it says what nobody asked for, and could go on
        return
      }
      asked.resolve(line.trim())
    }
    if (this.#line.length > LINE_MAX) this.#socket.destroy()
  }

  async #ask(line: string): Promise<string> {
    if (this.#socket.destroyed) throw new Error('QEMU hung up')
    const answer = deferred<string>()
    this.#waiting.push(answer)
    this.#socket.write(`${line}\n`)
    const [status, value = ''] = (await orAbort(answer.promise, this.#signal)).split(' ')
    if (status !== 'OK') throw new Error(`QEMU refused ${line.split(' ')[0] ?? ''}`)
    return value
  }

  async #number(line: string): Promise<number> {
    const value = HEX.exec(await this.#ask(line))?.[1]
    if (value === undefined) throw new Error('QEMU answers no number')
    return Number.parseInt(value, 16)
  }

  /** Addresses and values are whole and below 2^53; a value fits its width. */
  read(width: Width, address: number): Promise<number> {
    return this.#number(`read${LETTER[width]} 0x${address.toString(16)}`)
  }
  async write(width: Width, address: number, value: number): Promise<void> {
    await this.#ask(`write${LETTER[width]} 0x${address.toString(16)} 0x${value.toString(16)}`)
  }
  readPort(width: Width, port: number): Promise<number> {
    return this.#number(`in${LETTER[width]} 0x${port.toString(16)}`)
  }
  async writePort(width: Width, port: number, value: number): Promise<void> {
    await this.#ask(`out${LETTER[width]} 0x${port.toString(16)} 0x${value.toString(16)}`)
  }

  close(): void {
    this.#socket.destroy()
  }
}
