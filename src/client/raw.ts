import { RAW_END } from '../contract/forward.ts'
import type { Endpoint } from './endpoint.ts'
import { faultOfText } from './errors.ts'
import { openSocket } from './websocket.ts'

/** Bytes both ways: one forwarded connection, or a console. */
export interface Raw {
  /** Reads what the guest sends. Returns at its end of file or at the end of the connection. */
  bytes(): AsyncGenerator<Uint8Array, void>
  send(bytes: Uint8Array): Promise<void>
  /** Ends our direction; the other direction stays. */
  end(): Promise<void>
  close(): void
}

/** Opens a WebSocket that carries plain bytes both ways, as of a forwarded port. */
export const openRaw = async (endpoint: Endpoint, target: string): Promise<Raw> => {
  const socket = await openSocket(endpoint, target)
  return {
    async *bytes() {
      for await (const message of socket.messages()) {
        if (typeof message === 'string') {
          const fault = faultOfText(message)
          if (fault) throw fault
          continue
        }
        if (message.length === 0) return
        yield message
      }
    },
    // An empty piece would say the end.
    send: (bytes) => (bytes.length === 0 ? Promise.resolve() : socket.send(bytes)),
    end: () => socket.send(RAW_END),
    close: () => {
      socket.close()
    },
  }
}
