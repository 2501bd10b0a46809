import { connect, type Socket } from 'node:net'
import { Type, type Static } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { deferred, type Deferred } from '../../lib/promise.ts'
import type { Log } from '../../lib/log.ts'
import { closeFd } from '../../linux/fd.ts'
import { embedded } from '../../linux/embedded.ts'
import { MARK } from '../../linux/marked.ts'
import { sendFds, unixListen, descriptorOf } from '../../linux/socket.ts'
import { launch } from '../../linux/spawn.ts'
import type { HelperSocket } from './helper-sockets.ts'

/** The user of every helper: they are one, and can do nothing to one another (no ptrace, no signals, no files). */
const HELPER_UID = 0x4164_0000
const FRAME_BYTES_MAX = 1_048_576
const ANSWER_MS = 5000

/** One lease, as the helper is told of it. */
export interface HelperLease {
  readonly mac: string
  readonly address: string | null
  readonly address6: string | null
  readonly hostname: string
  readonly running: boolean
  readonly egress: { readonly names: readonly string[] } | null
}

/** A network, whole, as the helper is told of it. */
export interface HelperState {
  readonly network: Readonly<Record<string, unknown>>
  readonly leases: readonly HelperLease[]
  readonly names: readonly { readonly name: string; readonly addresses: readonly string[] }[]
  readonly upstreams: readonly string[]
}

const Said = Type.Object({
  type: Type.String(),
  seq: Type.Optional(Type.Integer()),
  generation: Type.Optional(Type.Union([Type.Integer(), Type.Null()])),
  id: Type.Optional(Type.Union([Type.String({ maxLength: 256 }), Type.Integer()])),
  code: Type.Optional(Type.String({ maxLength: 64 })),
  message: Type.Optional(Type.String({ maxLength: 1024 })),
  client: Type.Optional(Type.String({ maxLength: 64 })),
  name: Type.Optional(Type.String({ maxLength: 256 })),
  addresses: Type.Optional(Type.Array(Type.String({ maxLength: 64 }), { maxItems: 1024 })),
  ttl: Type.Optional(Type.Integer({ minimum: 0, maximum: 86_400 })),
  listeners: Type.Optional(Type.Array(Type.Object({ id: Type.String({ maxLength: 256 }) }), { maxItems: 65_536 })),
})
type Said = Static<typeof Said>

/** What a name of an allow-list was answered with: the answer leaves when this says true. */
export type Learn = (client: string, name: string, addresses: readonly string[], ttlSeconds: number) => boolean

/** The daemon's end of the helper of one network, `wing net` (docs/network-helper.md). It serves on while no daemon is there. */
export class NetHelper {
  readonly #socket: Socket
  readonly #log: Log
  readonly #learn: Learn
  readonly #waiting = new Map<string, Deferred<Said>>()
  #buffer: Buffer = Buffer.alloc(0)
  #seq = 0
  #open = true
  /** Frames with a descriptor go past the stream's own buffer, so what is there goes first. */
  #sending: Promise<unknown> = Promise.resolve()

  private constructor(socket: Socket, log: Log, learn: Learn) {
    this.#socket = socket
    this.#log = log
    this.#learn = learn
    socket.on('data', (bytes: Buffer) => {
      this.#take(bytes)
    })
    socket.on('error', () => undefined)
    socket.on('close', () => {
      this.#open = false
      for (const one of this.#waiting.values()) one.reject(new Error('the network helper has gone'))
      this.#waiting.clear()
    })
  }

  get isOpen(): boolean {
    return this.#open
  }

  /** Starts a helper that listens at `path`. The sockets are copied. */
  static async launch(path: string, mark: string, sockets: readonly HelperSocket[], log: number): Promise<void> {
    const control = unixListen(path, { mode: 0o600 })
    try {
      const argv = [
        'wing',
        'net',
        '--control-fd',
        '3',
        ...sockets.flatMap(({ flag }, index) => [flag, String(index + 4)]),
      ]
      const launched = await launch(
        {
          argv,
          exe: { fd: embedded('wing').fd },
          env: { [MARK]: mark },
          cwd: '/',
          umask: 0o077,
          rlimits: { core: [0, 0], nofile: [16_384, 16_384] },
          no_new_privs: true,
          capabilities: 'drop',
          ...(process.getuid?.() === 0 ? { uid: HELPER_UID, gid: HELPER_UID, groups: [] } : {}),
        },
        { stderr: log, fds: [[control, 3], ...sockets.map(({ fd }, index) => [fd, index + 4] as const)] },
      )
      void launched.exited.then(() => {
        closeFd(launched.pidfd)
      })
    } finally {
      closeFd(control)
    }
  }

  /** Takes over the helper that listens at `path`; undefined where none does. */
  static async connect(path: string, log: Log, learn: Learn): Promise<NetHelper | undefined> {
    const socket = connect(path)
    const opened = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => {
        resolve(true)
      })
      socket.once('error', () => {
        resolve(false)
      })
    })
    if (!opened) return undefined
    socket.unref()
    return new NetHelper(socket, log, learn)
  }

  close(): void {
    this.#socket.destroy()
  }

  /** Tells everything anew. */
  async state(generation: number, state: HelperState): Promise<void> {
    await this.#ask(`generation ${generation}`, { type: 'state', generation, ...state })
  }

  /** Tells a change; the next packet sees it when this resolves. */
  async tell(message: Readonly<Record<string, unknown>>): Promise<void> {
    const seq = ++this.#seq
    await this.#ask(`seq ${seq}`, { ...message, seq })
  }

  /** Hands on a listening socket whose connections are carried to `target`. */
  async listen(id: string, proto: 'tcp' | 'udp', target: string | null, fd: number): Promise<void> {
    await this.#ask(`id ${id}`, { type: 'listen', id, proto, target }, fd)
  }

  async retarget(id: string, target: string | null): Promise<void> {
    await this.#ask(`id ${id}`, { type: 'retarget', id, target })
  }

  async unlisten(id: string): Promise<void> {
    await this.#ask(`id ${id}`, { type: 'unlisten', id })
  }

  /** Asks which listeners it holds. */
  async listeners(): Promise<readonly string[]> {
    const seq = ++this.#seq
    const said = await this.#ask(`seq ${seq}`, { type: 'stats', seq })
    return (said.listeners ?? []).map(({ id }) => id)
  }

  async #ask(key: string, message: unknown, fd?: number): Promise<Said> {
    if (!this.#open) throw new Error('the network helper has gone')
    const answer = deferred<Said>()
    answer.promise.catch(() => undefined)
    this.#waiting.set(key, answer)
    const late = setTimeout(() => {
      answer.reject(new Error('the network helper does not answer'))
      this.close() // whoever waits behind this one would wait as long
    }, ANSWER_MS)
    try {
      await this.#send(message, fd)
      return await answer.promise
    } finally {
      clearTimeout(late)
      if (this.#waiting.get(key) === answer) this.#waiting.delete(key)
    }
  }

  #send(message: unknown, fd?: number): Promise<unknown> {
    const json = Buffer.from(JSON.stringify(message))
    const frame = Buffer.alloc(4 + json.length)
    frame.writeUInt32BE(json.length)
    frame.set(json, 4)
    if (json.length > FRAME_BYTES_MAX) return Promise.reject(new Error('a message for the network helper is too long'))
    const work = this.#sending.then(async () => {
      if (fd === undefined) {
        this.#socket.write(frame)
        return
      }
      while (this.#socket.writableLength > 0) await new Promise((resolve) => this.#socket.once('drain', resolve))
      const sent = sendFds(descriptorOf(this.#socket), frame, [fd])
      if (sent < frame.length) this.#socket.write(frame.subarray(sent))
    })
    this.#sending = work.catch(() => undefined)
    return work
  }

  #take(bytes: Buffer): void {
    this.#buffer = this.#buffer.length === 0 ? bytes : Buffer.concat([this.#buffer, bytes])
    while (this.#buffer.length >= 4) {
      const length = this.#buffer.readUInt32BE(0)
      if (length === 0 || length > FRAME_BYTES_MAX) {
        this.#log.error({ length }, 'the network helper says what is no frame')
        this.close()
        return
      }
      if (this.#buffer.length < 4 + length) return
      const json = this.#buffer.subarray(4, 4 + length)
      this.#buffer = this.#buffer.subarray(4 + length)
      this.#hear(json)
    }
  }

  #hear(json: Buffer): void {
    let said: unknown
    try {
      said = JSON.parse(json.toString('utf8'))
    } catch {
      said = undefined
    }
    if (!Value.Check(Said, said)) {
      this.#log.error('the network helper says what is no message')
      this.close()
      return
    }
    if (said.type === 'learned') {
      this.#learned(said)
      return
    }
    const key = [
      said.seq === undefined ? undefined : `seq ${said.seq}`,
      said.id === undefined ? undefined : `id ${said.id}`,
      said.generation == null ? undefined : `generation ${said.generation}`,
    ].find((one) => one !== undefined && this.#waiting.has(one))
    const waiting = key === undefined ? undefined : this.#waiting.get(key)
    if (said.type === 'error') waiting?.reject(new Error(said.message ?? said.code ?? 'the network helper refuses'))
    else waiting?.resolve(said)
    if (said.type === 'error' && !waiting) this.#log.error({ said }, 'the network helper refuses')
  }

  #learned({ id, client = '', name = '', addresses = [], ttl = 0 }: Said): void {
    let ok = false
    try {
      ok = this.#learn(client, name, addresses, ttl)
    } catch (error) {
      this.#log.error({ err: error, name }, 'cannot let a name through')
    }
    this.#send({ type: 'commit', id, ok }).catch(() => undefined)
  }
}
