import type { ServerWebSocket } from 'bun'
import type { SocketData } from './behavior.ts'

/** Bytes that may wait for one slow client before their source is held. */
const BACKLOG_MAX = 1_048_576

/** Sends to one client, and waits while it is slow. */
export class Sender {
  readonly #ws: ServerWebSocket<SocketData>
  #drained: (() => void) | undefined
  gone = false

  constructor(ws: ServerWebSocket<SocketData>) {
    this.#ws = ws
  }

  /** Resolves when more may be sent: false once the client has gone. */
  async send(message: Uint8Array): Promise<boolean> {
    if (this.gone) return false
    this.#ws.send(message)
    while (!this.gone && this.#ws.getBufferedAmount() > BACKLOG_MAX)
      await new Promise<void>((resolve) => {
        this.#drained = resolve
      })
    return !this.gone
  }

  drained(): void {
    this.#drained?.()
    this.#drained = undefined
  }
  close(): void {
    this.gone = true
    this.drained()
  }
}
