import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { decodeJson, encodeJson, encodeOpen, FRAME, FrameReader, KIND, type Frame } from '../../src/guest/frames.ts'
import type { AgentEvent } from '../../src/guest/messages.ts'
import { hashSecret, type Configuration, type SessionOwner } from '../../src/guest/session.ts'
import { newLog } from '../../src/lib/log.ts'

export const quiet = newLog('silent')

/** What the host knows of one vm, in memory. */
export class Owner implements SessionOwner {
  configured = 0
  hash: string | undefined
  taken: AgentEvent[] = []
  /** Set where a test wants an event to be slow, or to fail. */
  taking: (event: AgentEvent) => Promise<void> = () => Promise.resolve()

  configure(): Configuration {
    const secret = String(++this.configured)
      .repeat(64)
      .slice(0, 64)
    this.hash = hashSecret(secret)
    return {
      secret,
      time_ns: Date.now() * 1_000_000,
      entropy: 'ab'.repeat(32),
      hostname: 'h',
      machine_id: '0'.repeat(32),
      root: { mode: 'overlay', overlay_size_bytes: null },
      volumes: [],
      network: { mode: 'none' },
      nics: [],
      files: [],
      workload: null,
      grace_ms: 1000,
      log_bytes: 1024,
    }
  }

  secretHash(): string | undefined {
    return this.hash
  }
  acked(): number {
    return this.taken.at(-1)?.seq ?? 0
  }
  async event(event: AgentEvent): Promise<void> {
    await this.taking(event)
    this.taken.push(event)
  }
}

/** One connection to the host's port 1024, as any process of a guest can make it. */
export class Peer {
  readonly socket: Socket
  readonly #reader = new FrameReader()
  readonly #frames: Frame[] = []
  #ended = false
  #wake: () => void = () => undefined

  private constructor(socket: Socket) {
    this.socket = socket
    socket.on('data', (chunk: Buffer) => {
      for (const frame of this.#reader.push(Buffer.from(chunk))) this.#frames.push(frame)
      this.#wake()
    })
    for (const end of ['end', 'close', 'error'] as const)
      socket.on(end, () => {
        this.#ended = true
        this.#wake()
      })
  }

  static async connect(path: string): Promise<Peer> {
    const socket = connect({ path, allowHalfOpen: true })
    const peer = new Peer(socket)
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', reject)
    })
    return peer
  }

  send(bytes: Uint8Array): this {
    this.socket.write(bytes)
    return this
  }
  open(secret: string | null, extra: object = {}): this {
    return this.send(
      encodeOpen(KIND.session, { boot_id: 'b', agent: 'test', kernel: 'k', secret, last_event: 0, ...extra }),
    )
  }
  event(body: object): this {
    return this.send(encodeJson(FRAME.event, body))
  }

  /** The next frame; undefined when the host has hung up. */
  async next(): Promise<Frame | undefined> {
    for (;;) {
      const frame = this.#frames.shift()
      if (frame) return frame
      if (this.#ended) return undefined
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  async json(): Promise<Record<string, unknown> & { type: number }> {
    const frame = await this.next()
    if (!frame) throw new Error('the host has hung up')
    return { ...decodeJson(frame), type: frame.type }
  }

  /** The sequence number that the host has taken. */
  async ack(): Promise<number> {
    const frame = await this.next()
    if (frame?.type !== FRAME.ack) throw new Error(`no ack: ${frame?.type ?? 'end'}`)
    return Number(new DataView(frame.payload.buffer, frame.payload.byteOffset).getBigUint64(0, true))
  }

  close(): void {
    this.socket.destroy()
  }
}

/** A folder of a test's own, gone at its end. */
export const folder = (): Disposable & { readonly path: string; at(name: string): string } => {
  const path = mkdtempSync('/tmp/aerie-u-')
  return {
    path,
    at: (name) => join(path, name),
    [Symbol.dispose]: () => {
      rmSync(path, { recursive: true, force: true })
    },
  }
}
