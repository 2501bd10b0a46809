/**
 * The frames of the guest protocol, generation 1: the TypeScript half of the codec (`docs/protocol.md` is the
 * specification, `native/protocol/golden/` the vectors that hold both halves together). Pure: bytes in, frames out.
 */

import { ARGUMENTS_JSON_MAX } from '../contract/guest.ts'
import { depthOf } from '../lib/json.ts'

export const GENERATION = 1
export const AGENT_PORT = 1024
const MAGIC = 'KSTR'
export const PAYLOAD_MAX = 1_048_576
/** The most bytes of JSON in a frame other than `ok`, which carries the configuration. */
export const JSON_MAX = 262_144
/** The most bytes of a configuration, which an `ok` carries. */
export const OK_MAX = 1_048_576
/**
 * The most bytes of JSON that we send in an `open` or an `ok`: room for the arguments and environment that Linux takes.
 * A guest may say no such thing.
 */
export const ARGUMENTS_MAX = ARGUMENTS_JSON_MAX
/** How deep arrays and objects may be nested. */
const JSON_DEPTH_MAX = 64
const HEADER = 5
const OPEN_PREFIX = 8
const LOG_PREFIX = 17
const SIGNAL_MAX = 64

export const FRAME = {
  open: 0x01,
  ok: 0x02,
  error: 0x03,
  stdin: 0x10,
  stdout: 0x11,
  stderr: 0x12,
  eof: 0x13,
  resize: 0x14,
  signal: 0x15,
  exit: 0x16,
  event: 0x17,
  ack: 0x18,
  request: 0x19,
  reply: 0x1a,
  window: 0x1b,
  log: 0x1c,
} as const
export type FrameType = (typeof FRAME)[keyof typeof FRAME]

/** The shortest and longest payload of each type: a header alone says whether the rest is worth keeping. */
const BOUNDS: ReadonlyMap<number, readonly [number, number]> = new Map<number, readonly [number, number]>([
  [FRAME.open, [OPEN_PREFIX, OPEN_PREFIX + JSON_MAX]],
  [FRAME.ok, [1, OK_MAX]],
  ...[FRAME.error, FRAME.exit, FRAME.event, FRAME.request, FRAME.reply].map((type) => [type, [1, JSON_MAX]] as const),
  ...[FRAME.stdin, FRAME.stdout, FRAME.stderr].map((type) => [type, [0, PAYLOAD_MAX]] as const),
  [FRAME.eof, [0, 0]],
  [FRAME.resize, [4, 4]],
  [FRAME.window, [4, 4]],
  [FRAME.signal, [1, 1]],
  [FRAME.ack, [8, 8]],
  [FRAME.log, [LOG_PREFIX, PAYLOAD_MAX]],
])

/** The same of what we say to an agent. */
const BOUNDS_SENT: typeof BOUNDS = new Map([
  ...BOUNDS,
  [FRAME.open, [OPEN_PREFIX, OPEN_PREFIX + ARGUMENTS_MAX]],
  [FRAME.ok, [1, ARGUMENTS_MAX]],
])

export const KIND = {
  session: 1,
  exec: 2,
  attach: 3,
  copyIn: 4,
  copyOut: 5,
  stat: 6,
  list: 7,
  logs: 8,
  proxy: 9,
  metrics: 10,
  identity: 11,
} as const
export type Kind = (typeof KIND)[keyof typeof KIND]

/** Bytes of stdin that may be sent before the guest has opened the window further. */
export const STDIN_WINDOW = 262_144

/** One frame of the protocol between daemon and agent (docs/protocol.md). */
export interface Frame {
  readonly type: FrameType
  readonly payload: Uint8Array
}

/** Why a peer's bytes are no frames. It costs that peer its connection, nothing else. */
export class FrameError extends Error {
  override name = 'FrameError'
  readonly code:
    | 'frame_too_long'
    | 'frame_type_unknown'
    | 'frame_payload_invalid'
    | 'frame_magic_invalid'
    | 'frame_json_invalid'
    | 'frame_json_too_deep'
    | 'frame_truncated'
  constructor(code: FrameError['code'], message: string) {
    super(message)
    this.code = code
  }
}

const named = (type: number): string => `frame 0x${type.toString(16).padStart(2, '0')}`

/** Checks the header of a frame. @throws FrameError where it promises what its type never has */
const checkHeader = (type: number, length: number, all = BOUNDS): void => {
  const bounds = all.get(type)
  if (!bounds) throw new FrameError('frame_type_unknown', `${named(type)} is unknown`)
  const [min, max] = bounds
  if (length >= min && length <= max) return
  throw new FrameError(
    length > max && min !== max ? 'frame_too_long' : 'frame_payload_invalid',
    `${named(type)} of ${length} bytes: ${min === max ? min : `${min} to ${max}`} are allowed`,
  )
}

/** Writes a frame. @throws FrameError where the other side would refuse it */
export const encode = (type: FrameType, payload: Uint8Array): Buffer => {
  checkHeader(type, payload.byteLength, BOUNDS_SENT)
  const frame = Buffer.allocUnsafe(HEADER + payload.byteLength)
  frame.writeUInt32LE(payload.byteLength, 0)
  frame[4] = type
  frame.set(payload, HEADER)
  return frame
}

/** A byte order mark is no JSON: it is kept, so that the parser refuses it. */
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** Writes a frame that carries a JSON value. */
export const encodeJson = (type: FrameType, body: unknown): Buffer => encode(type, Buffer.from(JSON.stringify(body)))

/** Writes a frame without a payload. */
export const encodeEmpty = (type: FrameType): Buffer => encode(type, new Uint8Array(0))

/** Writes the first frame of a connection: magic, generation, kind, and a JSON body. */
export const encodeOpen = (kind: Kind, body: unknown): Buffer => {
  const head = Buffer.alloc(8)
  head.write(MAGIC, 0, 'latin1')
  head.writeUInt16LE(GENERATION, 4)
  head[6] = kind
  return encode(FRAME.open, Buffer.concat([head, Buffer.from(JSON.stringify(body))]))
}

/** Writes a `resize`: columns and rows of the terminal, u16 each. */
export const encodeResize = (cols: number, rows: number): Buffer => {
  const payload = Buffer.alloc(4)
  payload.writeUInt16LE(cols, 0)
  payload.writeUInt16LE(rows, 2)
  return encode(FRAME.resize, payload)
}

/** Writes a `signal`: its number by Linux, one byte. */
export const encodeSignal = (signal: number): Buffer => encode(FRAME.signal, Uint8Array.of(signal))

/** Writes an `ack`: the number up to which everything has arrived, u64. */
export const encodeAck = (seq: number): Buffer => {
  const payload = Buffer.alloc(8)
  payload.writeBigUInt64LE(BigInt(seq), 0)
  return encode(FRAME.ack, payload)
}

/** Reads any JSON value of a frame. @throws FrameError where its payload is none, or is nested too deep */
export const decodeBody = ({ type, payload }: Frame): unknown => {
  let text: string
  try {
    text = utf8.decode(payload)
  } catch {
    throw new FrameError('frame_json_invalid', `${named(type)} carries no UTF-8`)
  }
  if (depthOf(payload) > JSON_DEPTH_MAX)
    throw new FrameError('frame_json_too_deep', `${named(type)} carries JSON nested deeper than ${JSON_DEPTH_MAX}`)
  try {
    return JSON.parse(text)
  } catch {
    throw new FrameError('frame_json_invalid', `${named(type)} carries no JSON`)
  }
}

/** Reads the JSON object of a frame. @throws FrameError */
export const decodeJson = (frame: Frame): Record<string, unknown> => {
  const body = decodeBody(frame)
  if (typeof body === 'object' && body !== null && !Array.isArray(body)) return body as Record<string, unknown>
  throw new FrameError('frame_payload_invalid', `${named(frame.type)} carries no JSON object`)
}

/** What the first frame of a connection says. */
export interface Open {
  readonly generation: number
  readonly kind: number
  readonly body: Record<string, unknown>
}

/**
 * Reads the first frame of a connection. The body of another generation is not read: its answer says which ones there
 * are.
 * @throws FrameError
 */
export const decodeOpen = (frame: Frame): Open => {
  const { payload } = frame
  if (frame.type !== FRAME.open || payload.byteLength < OPEN_PREFIX)
    throw new FrameError('frame_payload_invalid', 'the first frame is no open')
  if (Buffer.from(payload.subarray(0, 4)).toString('latin1') !== MAGIC)
    throw new FrameError('frame_magic_invalid', 'the first bytes are not those of this protocol')
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength)
  const generation = view.getUint16(4, true)
  const kind = view.getUint8(6)
  if (generation !== GENERATION) return { generation, kind, body: {} }
  if (view.getUint8(7) !== 0) throw new FrameError('frame_payload_invalid', 'the reserved byte of the open is not 0')
  return { generation, kind, body: decodeJson({ type: frame.type, payload: payload.subarray(OPEN_PREFIX) }) }
}

/** Reads a `window`: by how many bytes it opens. @throws FrameError */
export const decodeWindow = (frame: Frame): number => {
  if (frame.payload.byteLength !== 4) throw new FrameError('frame_payload_invalid', 'window is not 4 bytes')
  return new DataView(frame.payload.buffer, frame.payload.byteOffset, 4).getUint32(0, true)
}

/** One piece of the workload's log: its stream (1 stdout, 2 stderr, 3 the agent's notes), offset, time and bytes. */
export interface LogRecord {
  readonly stream: 1 | 2 | 3
  readonly offset: number
  readonly timeMs: number
  readonly bytes: Uint8Array
}

/** Reads a `log`. @throws FrameError */
export const decodeLog = (frame: Frame): LogRecord => {
  const { payload } = frame
  const stream = payload[0]
  if (payload.byteLength < LOG_PREFIX || (stream !== 1 && stream !== 2 && stream !== 3)) {
    throw new FrameError('frame_payload_invalid', 'log frame is malformed')
  }
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength)
  return {
    stream,
    offset: Number(view.getBigUint64(1, true)),
    timeMs: Number(view.getBigUint64(9, true) / 1_000_000n),
    bytes: payload.subarray(LOG_PREFIX),
  }
}

const EMPTY = Buffer.alloc(0)
/** What the first bytes of a frame take before its rest has come. */
const HELD_MIN = 4096

/**
 * Cuts a byte stream into frames. Memory: the frame that is not whole yet, as far as it has come; a length that is
 * claimed costs nothing, and a byte is copied a bounded number of times in whatever portions it comes.
 */
export class FrameReader {
  readonly #bounds: typeof BOUNDS
  #held: Buffer = EMPTY
  #size = 0

  /** @param from  who speaks: an agent reads more of its host than the host reads of it */
  constructor(from: 'agent' | 'host' = 'agent') {
    this.#bounds = from === 'host' ? BOUNDS_SENT : BOUNDS
  }

  /**
   * Reads the frames that are whole now. A payload is a view of `chunk`, or of memory that is not used again.
   *
   * @throws FrameError after which the stream has no known boundary: its connection must be closed
   */
  *push(chunk: Uint8Array): Generator<Frame> {
    let rest = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
    while (rest.byteLength > 0) {
      const wanted = frameLength(this.#size === 0 ? rest : this.#held.subarray(0, this.#size), this.#bounds)
      if (this.#size === 0 && rest.byteLength >= wanted && rest.byteLength >= HEADER) {
        yield frameOf(rest.subarray(0, wanted))
        rest = rest.subarray(wanted)
        continue
      }
      const part = rest.subarray(0, Math.max(0, wanted - this.#size))
      this.#hold(part, wanted)
      rest = rest.subarray(part.byteLength)
      if (this.#size < HEADER || this.#size < frameLength(this.#held.subarray(0, this.#size), this.#bounds)) continue
      const whole = this.#held.subarray(0, this.#size)
      this.#held = EMPTY
      this.#size = 0
      yield frameOf(whole)
    }
  }

  #hold(part: Uint8Array, wanted: number): void {
    if (this.#held.byteLength < this.#size + part.byteLength) {
      const larger = Buffer.allocUnsafeSlow(
        Math.max(this.#size + part.byteLength, Math.min(wanted, Math.max(HELD_MIN, this.#held.byteLength * 2))),
      )
      this.#held.copy(larger, 0, 0, this.#size)
      this.#held = larger
    }
    this.#held.set(part, this.#size)
    this.#size += part.byteLength
  }

  /** Hears that the stream has ended. @throws FrameError when it ended inside a frame */
  end(): void {
    if (this.#size > 0) throw new FrameError('frame_truncated', `the stream ended ${this.#size} bytes into a frame`)
  }
}

/**
 * Counts the bytes of a frame that begins with `bytes`, or of its header while that is not whole. @throws FrameError
 */
const frameLength = (bytes: Buffer, bounds: typeof BOUNDS): number => {
  if (bytes.byteLength < HEADER) return HEADER
  const length = bytes.readUInt32LE(0)
  checkHeader(bytes[4] ?? 0, length, bounds)
  return HEADER + length
}

const frameOf = (bytes: Buffer): Frame => {
  const type = bytes[4] as FrameType
  const payload = bytes.subarray(HEADER)
  const first = payload[0] ?? 0
  if (type === FRAME.signal && (first < 1 || first > SIGNAL_MAX))
    throw new FrameError('frame_payload_invalid', `signal ${first} is none`)
  return { type, payload }
}
