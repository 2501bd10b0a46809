import type { RawControl } from '../contract/vm.ts'
import type { Endpoint } from './endpoint.ts'
import { faultOfProblem } from './problem.ts'
import { openSocket } from './socket.ts'

/** Bytes both ways: one forwarded connection, or a console. */
export interface Raw {
  /** What the guest sends. Returns at its end of file or at the end of the connection. */
  bytes(): AsyncGenerator<Uint8Array, void>
  send(bytes: Uint8Array): Promise<void>
  /** No more will be sent; the other direction stays. */
  end(): Promise<void>
  close(): void
}

export const openRaw = async (endpoint: Endpoint, target: string): Promise<Raw> => {
  const socket = await openSocket(endpoint, target)
  return {
    async *bytes() {
      for await (const message of socket.messages()) {
        if (typeof message !== 'string') { yield message; continue }
        const control = JSON.parse(message) as RawControl
        if (control.type === 'eof') return
        if (control.type === 'error') throw faultOfProblem({ ...control }, 'unavailable')
      }
    },
    send: (bytes) => socket.send(bytes),
    end: () => socket.send(JSON.stringify({ type: 'eof' } satisfies RawControl)),
    close: () => { socket.close() },
  }
}
