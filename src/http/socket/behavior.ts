import type { ServerWebSocket } from 'bun'

/** One end of a WebSocket's conversation: what comes from the client goes in here. */
export interface Behavior {
  message(message: string | Uint8Array): void
  close(): void
  drained(): void
}

/** What a WebSocket is for; kept with the socket from its upgrade on. */
export interface SocketData {
  readonly begin: (ws: ServerWebSocket<SocketData>) => Behavior
  behavior?: Behavior
  /** Is called when the socket has closed. */
  readonly ended?: (() => void) | undefined
}
export type Ws = ServerWebSocket<SocketData>

/** Reasons of a close: RFC 6455, section 7.4.1. */
export const CLOSE = { normal: 1000, policy: 1008, tooLarge: 1009, broken: 1011 } as const
