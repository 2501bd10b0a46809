import { describe, expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  decodeBody,
  decodeLog,
  decodeOpen,
  decodeWindow,
  encode,
  encodeAck,
  encodeEmpty,
  encodeJson,
  encodeOpen,
  encodeResize,
  encodeSignal,
  FRAME,
  FrameError,
  FrameReader,
  OK_MAX,
  ARGUMENTS_MAX,
  GENERATION,
  KIND,
  PAYLOAD_MAX,
  type Frame,
  type FrameType,
  type Kind,
} from '../../src/guest/frames.ts'

/** The vectors that the agent's codec reads as well (`docs/protocol.md`). */
const golden = <T>(name: string): T =>
  JSON.parse(readFileSync(join(import.meta.dir, '../../native/protocol/golden', name), 'utf8')) as T
const frames =
  golden<{ name: string; hex: string; frame: Record<string, unknown> & { type: keyof typeof FRAME } }[]>('frames.json')
const malformed = golden<{ name: string; hex: string; error: string }[]>('malformed.json')

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')
const nameOf = (type: FrameType): string => Object.entries(FRAME).find(([, byte]) => byte === type)?.[0] ?? 'none'

/** A frame in the words of the vectors: everything that a payload says is read. */
const describeFrame = (frame: Frame): Record<string, unknown> => {
  const type = nameOf(frame.type)
  const view = new DataView(frame.payload.buffer, frame.payload.byteOffset, frame.payload.byteLength)
  switch (frame.type) {
    case FRAME.open: {
      const { generation, kind, body } = decodeOpen(frame)
      return generation === GENERATION
        ? { type, generation, kind, body }
        : { type, generation, kind, body_hex: hex(frame.payload.subarray(8)) }
    }
    case FRAME.ok:
    case FRAME.error:
    case FRAME.exit:
    case FRAME.event:
    case FRAME.request:
    case FRAME.reply:
      return { type, body: decodeBody(frame) }
    case FRAME.stdin:
    case FRAME.stdout:
    case FRAME.stderr:
      return { type, data_hex: hex(frame.payload) }
    case FRAME.eof:
      return { type }
    case FRAME.resize:
      return { type, columns: view.getUint16(0, true), rows: view.getUint16(2, true) }
    case FRAME.signal:
      return { type, number: view.getUint8(0) }
    case FRAME.ack:
      return { type, seq: view.getBigUint64(0, true).toString() }
    case FRAME.window:
      return { type, bytes: decodeWindow(frame) }
    case FRAME.log: {
      const { stream, bytes } = decodeLog(frame)
      return {
        type,
        stream,
        offset: view.getBigUint64(1, true).toString(),
        time_ns: view.getBigUint64(9, true).toString(),
        data_hex: hex(bytes),
      }
    }
  }
}

/** All frames of a stream that comes in these portions. */
const read = (bytes: Uint8Array, portions: () => number): Record<string, unknown>[] => {
  const reader = new FrameReader()
  const seen: Record<string, unknown>[] = []
  for (let at = 0; at < bytes.byteLength; ) {
    const part = bytes.subarray(at, at + Math.max(1, portions()))
    for (const frame of reader.push(part)) seen.push(describeFrame(frame))
    at += part.byteLength
  }
  reader.end()
  return seen
}

/** Mulberry32: numbers that a failing run can be repeated with. */
const randomOf =
  (seed: number) =>
  (below: number): number => {
    seed = (seed + 0x6d2b79f5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) % below
  }

const codeOf = (work: () => unknown): string | undefined => {
  try {
    work()
    return undefined
  } catch (error) {
    if (error instanceof FrameError) return error.code
    throw error
  }
}

describe('golden frames', () => {
  for (const vector of frames) {
    test(vector.name, () => {
      expect(read(Buffer.from(vector.hex, 'hex'), () => vector.hex.length)).toEqual([vector.frame])
    })
  }

  test('all of them in one stream come out whole in whatever portions they come', () => {
    const stream = Buffer.concat(frames.map((vector) => Buffer.from(vector.hex, 'hex')))
    const random = randomOf(1)

    for (const portion of [
      () => 1,
      () => 4,
      () => 5,
      () => 6,
      () => 65_536,
      ...Array.from({ length: 50 }, () => () => random(40)),
    ]) {
      expect(read(stream, portion)).toEqual(frames.map((vector) => vector.frame))
    }
  })

  test('cover every type and every kind', () => {
    expect(new Set(frames.map((vector) => vector.frame.type))).toEqual(
      new Set(Object.keys(FRAME) as (keyof typeof FRAME)[]),
    )
    expect(Object.values(KIND).filter((kind) => !frames.some((vector) => vector.frame['kind'] === kind))).toEqual([])
  })

  test('are what the encoders of this side write', () => {
    const written = (frame: (typeof frames)[number]['frame']): Buffer | undefined => {
      switch (frame.type) {
        case 'open':
          return frame['generation'] === GENERATION ? encodeOpen(frame['kind'] as Kind, frame['body']) : undefined
        case 'ok':
        case 'error':
        case 'exit':
        case 'event':
        case 'request':
        case 'reply':
          return encodeJson(FRAME[frame.type], frame['body'])
        case 'stdin':
        case 'stdout':
        case 'stderr':
          return encode(FRAME[frame.type], Buffer.from(String(frame['data_hex']), 'hex'))
        case 'eof':
          return encodeEmpty(FRAME.eof)
        case 'resize':
          return encodeResize(Number(frame['columns']), Number(frame['rows']))
        case 'signal':
          return encodeSignal(Number(frame['number']))
        case 'ack':
          return Number.isSafeInteger(Number(frame['seq'])) ? encodeAck(Number(frame['seq'])) : undefined // a number that we never count to
        case 'window':
        case 'log':
          return undefined // the agent alone says these
      }
    }
    let compared = 0
    for (const vector of frames) {
      const bytes = written(vector.frame)
      if (!bytes) continue
      compared++
      expect(`${vector.name}: ${hex(bytes)}`).toBe(`${vector.name}: ${vector.hex}`)
    }
    expect(compared).toBeGreaterThan(frames.length / 2)
  })
})

describe('golden malformed streams', () => {
  for (const vector of malformed) {
    test(vector.name, () => {
      const stream = Buffer.from(vector.hex, 'hex')

      for (const portion of [1, 2, 3, 5, 7, stream.byteLength])
        expect(codeOf(() => read(stream, () => portion))).toBe(vector.error)
    })
  }
})

test('a stream that ends inside a frame is truncated, one that ends between two is whole', () => {
  const stream = encodeJson(FRAME.ok, { pid: 1 })

  for (let cut = 1; cut < stream.byteLength; cut++)
    expect(codeOf(() => read(stream.subarray(0, cut), () => 3))).toBe('frame_truncated')
  expect(codeOf(() => read(stream, () => 3))).toBeUndefined()
})

test('what is longer than a frame may be is not sent', () => {
  expect(codeOf(() => encode(FRAME.stdin, new Uint8Array(PAYLOAD_MAX + 1)))).toBe('frame_too_long')
  expect(codeOf(() => encodeOpen(KIND.exec, { argv: ['x'.repeat(ARGUMENTS_MAX)] }))).toBe('frame_too_long')
  expect(codeOf(() => encodeJson(FRAME.ok, { env: 'x'.repeat(1_000_000) }))).toBeUndefined()
})

test('a frame whose length is claimed and never comes costs what has come', () => {
  const reader = new FrameReader()
  const header = Buffer.from([0, 0, 0x10, 0, FRAME.stdout])
  const before = process.memoryUsage().rss

  const readers = Array.from({ length: 500 }, () => {
    const one = new FrameReader()
    for (const _ of one.push(header)) throw new Error('a frame of nothing')
    return one
  })

  for (const _ of reader.push(header)) throw new Error('a frame of nothing')
  expect(readers.length).toBe(500)
  expect(process.memoryUsage().rss - before).toBeLessThan(100 * 2 ** 20) // 500 MiB were claimed
})

test('a frame that comes byte by byte costs no more than its bytes', () => {
  const stream = encode(FRAME.stdout, new Uint8Array(PAYLOAD_MAX).fill(7))
  const reader = new FrameReader()
  let got = 0

  const start = performance.now()
  for (let at = 0; at < stream.byteLength; at++)
    for (const frame of reader.push(stream.subarray(at, at + 1))) got = frame.payload.byteLength
  const tookMs = performance.now() - start

  expect(got).toBe(PAYLOAD_MAX)
  expect(tookMs).toBeLessThan(20_000) // copying what is held for every byte would take minutes
}, 30_000)

test('a hundred thousand mutated streams end in frames or in a FrameError, and hold no memory', () => {
  const random = randomOf(20_261_121)
  const seeds = frames.map((vector) => Buffer.from(vector.hex, 'hex'))
  const pick = (): Buffer => seeds[random(seeds.length)] ?? Buffer.alloc(0)
  const mutate = (): Buffer => {
    const bytes = Buffer.from(random(3) === 0 ? Buffer.concat([pick(), pick()]) : pick())
    for (let changes = 1 + random(4); changes > 0; changes--) {
      if (bytes.byteLength === 0) break
      const at = random(3) === 0 ? random(Math.min(13, bytes.byteLength)) : random(bytes.byteLength) // headers are where a reader decides
      bytes[at] = random(4) === 0 ? (bytes[at] ?? 0) ^ (1 << random(8)) : random(256)
    }
    return random(4) === 0 ? bytes.subarray(0, random(bytes.byteLength + 1)) : bytes
  }
  const outcomes = new Map<string, number>()
  Bun.gc(true)
  const before = process.memoryUsage().rss

  for (let round = 0; round < 100_000; round++) {
    const outcome = codeOf(() => read(mutate(), () => 1 + random(64))) ?? 'read'
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
  }

  Bun.gc(true)
  expect(process.memoryUsage().rss - before).toBeLessThan(200 * 2 ** 20)
  expect([...outcomes.keys()].sort()).toEqual([
    'frame_json_invalid',
    'frame_magic_invalid',
    'frame_payload_invalid',
    'frame_too_long',
    'frame_truncated',
    'frame_type_unknown',
    'read',
  ])
}, 60_000)

describe('arguments', () => {
  const many = (count: number) => Array.from({ length: count }, (_, at) => String(at))

  test.each([
    ['more than a thousand', many(2000)],
    ['a hundred thousand', many(100_000)],
    ['2 MiB in long ones', Array.from({ length: 16 }, () => 'x'.repeat(131_000))],
    ['2 MiB that are six times as long in JSON', Array.from({ length: 16 }, () => '\u0001'.repeat(131_000))],
    ['2 MiB of line ends and quotes', Array.from({ length: 16 }, () => '\n"'.repeat(65_500))],
    ['as many as Linux takes, of one letter', Array.from({ length: 200_000 }, () => 'x')],
  ])('go to an agent in one request: %s', (_, argv) => {
    const frame = encodeOpen(KIND.exec, { argv })

    expect(JSON.parse(frame.subarray(13).toString())).toEqual({ argv })
    expect(encodeJson(FRAME.ok, { argv }).readUInt32LE(0)).toBeLessThan(ARGUMENTS_MAX)
  })

  test('are bounded together, and a guest may not say as much', () => {
    expect(codeOf(() => encodeOpen(KIND.exec, { argv: ['x'.repeat(ARGUMENTS_MAX)] }))).toBe('frame_too_long')
    expect(codeOf(() => [...new FrameReader().push(encodeJson(FRAME.ok, { said: 'x'.repeat(2 * 1_048_576) }))])).toBe(
      'frame_too_long',
    )
  })
})

test('an agent reads more of its host than the host reads of an agent', () => {
  const large = encode(FRAME.ok, Buffer.alloc(OK_MAX + 1, '1'))

  expect([...new FrameReader('host').push(large)].map(({ payload }) => payload.byteLength)).toEqual([OK_MAX + 1])
  expect(() => [...new FrameReader().push(large)]).toThrow(FrameError)
})
