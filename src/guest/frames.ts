/**
 * The frames of the guest protocol, generation 1: the TypeScript half of the codec (`native/protocol/README.md` is the
 * specification, `native/protocol/golden/` the vectors that hold both halves together). Pure: bytes in, frames out.
 */

export const GENERATION = 1
export const AGENT_PORT = 1024
const MAGIC = 'KSTR'
export const PAYLOAD_MAX = 1_048_576
const JSON_MAX = 1_048_576
const HEADER = 5

export const FRAME = {
  open: 0x01, ok: 0x02, error: 0x03, stdin: 0x10, stdout: 0x11, stderr: 0x12, eof: 0x13, resize: 0x14, signal: 0x15, exit: 0x16,
  event: 0x17, ack: 0x18, request: 0x19, reply: 0x1a, window: 0x1b, log: 0x1c,
} as const
export type FrameType = (typeof FRAME)[keyof typeof FRAME]
const KNOWN: ReadonlySet<number> = new Set(Object.values(FRAME))

export const KIND = {
  session: 1, exec: 2, attach: 3, copyIn: 4, copyOut: 5, stat: 6, list: 7, logs: 8, proxy: 9, metrics: 10, identity: 11,
} as const
export type Kind = (typeof KIND)[keyof typeof KIND]

/** Bytes of stdin that may be sent before the guest has opened the window further. */
export const STDIN_WINDOW = 262_144

export interface Frame { readonly type: FrameType; readonly payload: Uint8Array }

/** Why a peer's bytes are no frames. It costs that peer its connection, nothing else. */
export class FrameError extends Error {
  override name = 'FrameError'
  readonly code: 'frame_too_long' | 'frame_type_unknown' | 'frame_payload_invalid' | 'frame_truncated'
  constructor(code: FrameError['code'], message: string) { super(message); this.code = code }
}

export const encode = (type: FrameType, payload: Uint8Array): Buffer => {
  const frame = Buffer.allocUnsafe(HEADER + payload.byteLength)
  frame.writeUInt32LE(payload.byteLength, 0)
  frame[4] = type
  frame.set(payload, HEADER)
  return frame
}

const utf8 = new TextDecoder('utf-8', { fatal: true })
export const encodeJson = (type: FrameType, body: unknown): Buffer => encode(type, Buffer.from(JSON.stringify(body)))
export const encodeEmpty = (type: FrameType): Buffer => encode(type, new Uint8Array(0))
export const encodeOpen = (kind: Kind, body: unknown): Buffer => {
  const head = Buffer.alloc(8)
  head.write(MAGIC, 0, 'latin1')
  head.writeUInt16LE(GENERATION, 4)
  head[6] = kind
  return encode(FRAME.open, Buffer.concat([head, Buffer.from(JSON.stringify(body))]))
}
export const encodeResize = (cols: number, rows: number): Buffer => {
  const payload = Buffer.alloc(4)
  payload.writeUInt16LE(cols, 0)
  payload.writeUInt16LE(rows, 2)
  return encode(FRAME.resize, payload)
}
export const encodeSignal = (signal: number): Buffer => encode(FRAME.signal, Uint8Array.of(signal))
export const encodeAck = (seq: number): Buffer => {
  const payload = Buffer.alloc(8)
  payload.writeBigUInt64LE(BigInt(seq), 0)
  return encode(FRAME.ack, payload)
}

/** @throws FrameError where the payload is no JSON object of a sane size */
export const decodeJson = (frame: Frame): Record<string, unknown> => {
  if (frame.payload.byteLength > JSON_MAX) throw new FrameError('frame_payload_invalid', 'JSON is longer than 1 MiB')
  try {
    const body: unknown = JSON.parse(utf8.decode(frame.payload))
    if (typeof body === 'object' && body !== null && !Array.isArray(body)) return body as Record<string, unknown>
  } catch { /* falls through: one sentence for both */ }
  throw new FrameError('frame_payload_invalid', `payload of frame 0x${frame.type.toString(16)} is no JSON object`)
}

export interface Open { readonly generation: number; readonly kind: number; readonly body: Record<string, unknown> }

export const decodeOpen = (frame: Frame): Open => {
  const { payload } = frame
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength)
  if (frame.type !== FRAME.open || payload.byteLength < 8 || Buffer.from(payload.subarray(0, 4)).toString('latin1') !== MAGIC) {
    throw new FrameError('frame_payload_invalid', 'first frame is no open')
  }
  return { generation: view.getUint16(4, true), kind: payload[6] ?? 0,
    body: decodeJson({ type: frame.type, payload: payload.subarray(8) }) }
}

export const decodeWindow = (frame: Frame): number => {
  if (frame.payload.byteLength !== 4) throw new FrameError('frame_payload_invalid', 'window is not 4 bytes')
  return new DataView(frame.payload.buffer, frame.payload.byteOffset, 4).getUint32(0, true)
}

export interface LogRecord { readonly stream: 1 | 2 | 3; readonly offset: number; readonly timeMs: number; readonly bytes: Uint8Array }

export const decodeLog = (frame: Frame): LogRecord => {
  const { payload } = frame
  const stream = payload[0]
  if (payload.byteLength < 17 || (stream !== 1 && stream !== 2 && stream !== 3)) {
    throw new FrameError('frame_payload_invalid', 'log frame is malformed')
  }
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength)
  return { stream, offset: Number(view.getBigUint64(1, true)), timeMs: Number(view.getBigUint64(9, true) / 1_000_000n),
    bytes: payload.subarray(17) }
}

/** Cuts a byte stream into frames. Memory: one frame and the last chunk. */
export class FrameReader {
  #pending: Buffer = Buffer.alloc(0);

  /** The frames that are whole now. Their payloads are views: use or copy them before the next call. */
  *push(chunk: Uint8Array): Generator<Frame> {
    let bytes: Buffer = this.#pending.byteLength === 0
      ? Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength) : Buffer.concat([this.#pending, chunk])
    this.#pending = Buffer.alloc(0)
    while (bytes.byteLength >= HEADER) {
      const length = bytes.readUInt32LE(0), type = bytes[4] ?? 0
      if (length > PAYLOAD_MAX) throw new FrameError('frame_too_long', `frame of ${length} bytes is longer than ${PAYLOAD_MAX}`)
      if (!KNOWN.has(type)) throw new FrameError('frame_type_unknown', `frame type 0x${type.toString(16)} is unknown`)
      if (bytes.byteLength < HEADER + length) break
      yield { type: type as FrameType, payload: bytes.subarray(HEADER, HEADER + length) }
      bytes = bytes.subarray(HEADER + length)
    }
    this.#pending = bytes
  }

  /** @throws FrameError when the stream ended inside a frame */
  end(): void {
    if (this.#pending.byteLength > 0) throw new FrameError('frame_truncated', `stream ended ${this.#pending.byteLength} bytes into a frame`)
  }
}
