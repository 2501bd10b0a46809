import { chmodSync, closeSync, fstatSync, openSync, readSync, rmSync } from 'node:fs'

/** Between two looks at the log while somebody reads. */
const LOOK_MS = 50
const PART_BYTES = 65_536

interface Reader { at: number }

/**
 * A console socket over a console's log: what the guest prints from now on, to whoever connects. talon's serial port takes no input, so what a
 * client types goes nowhere. A slow client holds nothing up: it has a place in the file, not a queue.
 */
export class LogConsole {
  readonly #log: number
  readonly #server: Bun.UnixSocketListener<Reader>
  readonly #readers = new Set<Bun.Socket<Reader>>()
  #timer: Timer | undefined

  constructor(log: string, socket: string) {
    this.#log = openSync(log, 'r')
    try {
      rmSync(socket, { force: true }) // of an earlier daemon
      this.#server = Bun.listen<Reader>({ unix: socket, socket: {
        open: (client) => {
          client.data = { at: fstatSync(this.#log).size }
          this.#readers.add(client)
          this.#timer ??= setInterval(() => { this.#look() }, LOOK_MS)
        },
        data: () => undefined,
        close: (client) => { this.#forget(client) },
        error: (client) => { this.#forget(client) },
      } })
      chmodSync(socket, 0o600)
    } catch (error) {
      closeSync(this.#log)
      throw error
    }
  }

  /** Shows what is still to be shown, and lets everybody go. */
  close(): void {
    this.#look()
    for (const client of this.#readers) client.end()
    this.#readers.clear()
    clearInterval(this.#timer)
    this.#server.stop()
    closeSync(this.#log)
  }

  #look(): void {
    const { size } = fstatSync(this.#log)
    for (const client of this.#readers) {
      if (client.data.at > size) client.data.at = 0 // it has begun again
      while (client.data.at < size) {
        const part = Buffer.alloc(Math.min(PART_BYTES, size - client.data.at))
        const read = readSync(this.#log, part, 0, part.byteLength, client.data.at)
        const taken = read === 0 ? 0 : client.write(part.subarray(0, read))
        if (taken <= 0) break
        client.data.at += taken
        if (taken < read) break
      }
    }
  }

  #forget(client: Bun.Socket<Reader>): void {
    this.#readers.delete(client)
    if (this.#readers.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }
}
