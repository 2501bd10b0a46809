import { chmodSync, chownSync, rmSync } from 'node:fs'
import { createHash, timingSafeEqual } from 'node:crypto'
import { createServer, type Server, type Socket } from 'node:net'
import { agentUnavailable } from '../hypervisor/errors.ts'
import { Allowance, type Rate } from '../lib/allowance.ts'
import { Fault } from '../lib/fault.ts'
import type { Log } from '../lib/log.ts'
import { deferred, orAbort, type Deferred } from '../lib/promise.ts'
import { Conversation } from './conversation.ts'
import { decodeJson, decodeOpen, encodeAck, encodeJson, FRAME, FrameError, GENERATION, KIND } from './frames.ts'
import { messageOf } from '../lib/thrown.ts'
import { AgentEvent, readAs } from './messages.ts'

/** One network card, as the agent is told of it: the n-th of a list is the n-th that the guest's kernel found. */
export interface GuestNic {
  /** The card's own where it is absent. A restored card has that of the guest that was saved. */
  readonly mac?: string
  /** IPv4, with the length of its prefix; a card without an address is raised only. */
  readonly address?: string
  readonly gateway?: string
  /**
   * IPv6, with the length of its prefix. Agents without the feature `nic_static` pass over this and what follows but
   * `dns`.
   */
  readonly address6?: string
  readonly gateway6?: string
  /** Bytes; the card's own where it is absent. */
  readonly mtu?: number
  /** Further routes over this card, of both families; on its own link where there is no router. */
  readonly routes?: readonly { readonly destination: string; readonly via?: string }[]
  readonly dns?: readonly string[]
  /** Domains that a name without a dot is looked for in. */
  readonly search?: readonly string[]
  /** The agent asks by DHCP for what is not said here. Agents without the feature `nic_dhcp` only raise the card. */
  readonly dhcp?: boolean
}

/** The network as agents of before `nics` read it: they wake from older snapshots. */
export interface OneNic {
  readonly mode: 'none' | 'user'
  readonly mac?: string
}

/** What kestrel is told before it starts anything (`docs/protocol.md`, "Session"). */
export interface Configuration {
  readonly secret: string
  readonly time_ns: number
  readonly entropy: string
  readonly hostname: string
  readonly machine_id: string
  readonly root: { readonly mode: 'overlay' | 'initramfs'; readonly overlay_size_bytes: number | null }
  readonly volumes: readonly {
    readonly serial: string
    readonly path: string
    readonly read_only: boolean
    readonly fs: 'ext4' | 'erofs'
  }[]
  readonly network: OneNic
  readonly nics: readonly GuestNic[]
  readonly files: readonly { readonly path: string; readonly mode: number; readonly content_base64: string }[]
  readonly workload: null | {
    readonly argv: readonly string[]
    readonly env: Readonly<Record<string, string>>
    readonly cwd: string
    readonly user: string
    readonly tty: boolean
    readonly hold: boolean
    readonly stop_signal: number
  }
  readonly grace_ms: number
  readonly log_bytes: number
  readonly shm_bytes?: number
}

/** Whose guest it is: every answer that must survive the daemon is durable when these return. */
export interface SessionOwner {
  /** Makes and stores a new configuration, for an agent that has none yet. */
  configure(): Configuration
  /** Gives the SHA-256, in hex, of the secret of the last configuration; undefined before the first. */
  secretHash(): string | undefined
  /** Gives the number of the newest event that was taken. */
  acked(): number
  /** Takes one event; resolves when it is durable. */
  event(event: AgentEvent): Promise<void>
}

type RequestArgs = Readonly<Record<string, unknown>>

/** Hashes the secret of a boot, SHA-256 in hex: the store holds no secret itself. */
export const hashSecret = (secret: string): string => createHash('sha256').update(secret).digest('hex')

const sameHash = (a: string, b: string): boolean => timingSafeEqual(Buffer.from(a, 'hex'), Buffer.from(b, 'hex'))

/**
 * A configuration must have been asked for within this time of the connect: a guest may open sockets and say nothing.
 */
const HELLO_MS = 10_000
/**
 * Connections to port 1024 that have not said hello, at once: the oldest goes for a new one, so that the silent never
 * keep the agent out.
 */
const STRANGERS_MAX = 8
/**
 * New connections to port 1024: an agent makes one a boot or a wake, and any process of the guest may make as many as
 * it likes.
 */
const CONNECTIONS: Rate = { perSecond: 20, burst: 200 }
/**
 * The host does not listen for this long after a guest has used up its connections: a refusal costs its VMM, and
 * nothing here.
 */
const DEAF_MS = 1000
/**
 * What an agent says on its own, repeats too: it has some four events a boot, and each new one costs the host a synced
 * write.
 */
const EVENTS: Rate = { perSecond: 1, burst: 20 }
/** An agent's hello is its secret and a few words more; JSON of a stranger is not read beyond this. */
const HELLO_BYTES_MAX = 1024

/**
 * The agent's own connection, guest to host, on port 1024: configuration, events, requests. It is re-made by the guest
 * whenever it breaks, so a `GuestSession` lives as long as its machine and not as long as a connection.
 *
 * Any process of the guest can connect to this port. A stranger is refused: the configuration is given while nothing of
 * the guest's own has run (no event was taken and no agent is connected), later ones must know the session's secret.
 */
export class GuestSession {
  readonly #path: string
  readonly #owner: SessionOwner
  readonly #log: Log
  readonly #helloMs: number
  readonly #connections = new Allowance(CONNECTIONS)
  readonly #events = new Allowance(EVENTS)
  #server: Server
  #deaf: NodeJS.Timeout | undefined
  readonly #strangers = new Set<Conversation>()
  #current: Conversation | undefined
  #connected: Deferred<Conversation> = deferred()
  #welcomed = false
  #requests = new Map<number, Deferred<Record<string, unknown>>>()
  #nextRequest = 1
  /** The newest event that was taken, as far as this daemon knows: the row is asked once. */
  #acked: number | undefined
  #closed = false
  readonly #jail: { uid: number; gid: number } | undefined

  private constructor(
    path: string,
    jail: { uid: number; gid: number } | undefined,
    owner: SessionOwner,
    log: Log,
    helloMs: number,
  ) {
    this.#path = path
    this.#jail = jail
    this.#owner = owner
    this.#log = log
    this.#helloMs = helloMs
    this.#server = this.#makeServer()
  }

  #makeServer(): Server {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      void this.#meet(socket)
    })
    server.on('error', (error) => {
      this.#log.warn({ path: this.#path, reason: error.message }, 'cannot take a connection of a guest')
    })
    return server
  }

  async #listen(): Promise<void> {
    rmSync(this.#path, { force: true })
    const listening = Promise.withResolvers<void>()
    this.#server.once('error', listening.reject)
    this.#server.listen(this.#path, listening.resolve)
    await listening.promise
    this.#server.off('error', listening.reject)
    chmodSync(this.#path, 0o600)
    if (this.#jail) chownSync(this.#path, this.#jail.uid, this.#jail.gid)
  }

  /** Stops listening for a moment: what a guest connects to is then not there, which its VMM tells it. */
  #rest(): void {
    if (this.#deaf !== undefined || this.#closed) return
    this.#log.warn({ path: this.#path }, 'a guest connects too often: it is not listened to for a second')
    this.#server.close()
    rmSync(this.#path, { force: true })
    this.#deaf = setTimeout(() => {
      this.#deaf = undefined
      if (this.#closed) return
      this.#server = this.#makeServer()
      this.#listen().catch((error: unknown) => {
        this.#log.error({ path: this.#path, err: error }, 'cannot listen for a guest again')
      })
    }, DEAF_MS)
  }

  /** Listens at `path`, which only root and `jail` may use. A socket left by an earlier daemon is replaced. */
  static async listen(
    path: string,
    jail: { uid: number; gid: number } | undefined,
    owner: SessionOwner,
    log: Log,
    helloMs = HELLO_MS,
  ): Promise<GuestSession> {
    const session = new GuestSession(path, jail, owner, log, helloMs)
    await session.#listen()
    return session
  }

  async #meet(socket: Socket): Promise<void> {
    if (this.#closed || this.#deaf !== undefined || !this.#connections.take()) {
      socket.destroy()
      this.#rest()
      return
    }
    const conversation = new Conversation(socket)
    const [oldest] = this.#strangers
    if (oldest && this.#strangers.size >= STRANGERS_MAX) {
      this.#strangers.delete(oldest)
      oldest.close()
    }
    this.#strangers.add(conversation)
    const late = setTimeout(() => {
      conversation.close()
    }, this.#helloMs)
    try {
      let welcome: boolean
      try {
        welcome = await this.#welcome(conversation)
      } finally {
        clearTimeout(late)
        this.#strangers.delete(conversation)
      }
      if (welcome) await this.#serve(conversation)
    } catch (error) {
      this.#log.debug(
        { path: this.#path, reason: messageOf(error) },
        this.#current === conversation ? "the agent's connection broke" : 'a guest connection was dropped',
      )
    } finally {
      conversation.close()
      if (this.#current === conversation) this.#disconnect()
    }
  }

  /** Forgets what was asked over the connection that is gone: nothing answers it any more. */
  #disconnect(): void {
    this.#current?.close()
    this.#current = undefined
    if (this.#welcomed) this.#connected = deferred() // who waits for a connection that was never welcomed waits on
    this.#welcomed = false
    for (const request of this.#requests.values()) request.reject(agentUnavailable({ reason: 'its connection broke' }))
    this.#requests.clear()
  }

  async #welcome(conversation: Conversation): Promise<boolean> {
    const frame = await conversation.next()
    if (!frame) return false
    if (frame.payload.byteLength > HELLO_BYTES_MAX) throw new FrameError('frame_too_long', 'a hello is shorter')
    const open = decodeOpen(frame)
    const refuse = async (code: string, message: string, more: object = {}): Promise<false> => {
      await conversation.send(encodeJson(FRAME.error, { code, message, ...more }))
      conversation.endWriting()
      return false
    }
    if (open.generation !== GENERATION)
      return await refuse('generation_unknown', `generation ${open.generation} is unknown`, { supported: [GENERATION] })
    if (open.kind !== KIND.session) return await refuse('kind_unknown', 'only a session comes from the guest')
    const secret = open.body['secret']
    const known = this.#owner.secretHash()
    if (typeof secret === 'string') {
      if (known === undefined || !sameHash(hashSecret(secret), known))
        return await refuse('refused', "the secret is not this session's")
      if (this.#current) this.#disconnect() // the agent itself says that the older connection is dead
      this.#current = conversation
      await conversation.send(encodeJson(FRAME.ok, { resumed: true, acked: this.#taken() }))
    } else {
      if (this.#current !== undefined || this.#taken() > 0) return await refuse('refused', 'this guest has its session')
      this.#current = conversation
      await conversation.send(encodeJson(FRAME.ok, { resumed: false, ...this.#owner.configure() }))
    }
    this.#welcomed = true
    this.#connected.resolve(conversation)
    return true
  }

  async #serve(conversation: Conversation): Promise<void> {
    for await (const frame of conversation) {
      if (frame.type === FRAME.event) {
        if (!this.#events.take()) throw new Error('it sends more events than an agent has')
        const event = readAs(AgentEvent, decodeJson(frame))
        if (event.seq > this.#taken()) {
          await this.#owner.event(event)
          this.#acked = event.seq
        }
        await conversation.send(encodeAck(event.seq))
      } else if (frame.type === FRAME.reply) {
        const reply = decodeJson(frame)
        const id = Number(reply['id'])
        const request = this.#requests.get(id)
        // An answer may come when nobody waits any more, but not often.
        if (!request && !this.#events.take()) throw new Error('it answers what nobody asked')
        request?.resolve(reply)
        this.#requests.delete(id)
      } else {
        throw new Error(`frame 0x${frame.type.toString(16)} has no place in a session`)
      }
    }
  }

  #taken(): number {
    this.#acked ??= this.#owner.acked()
    return this.#acked
  }

  /**
   * Asks the agent for something. Arguments that are a function are asked for when the agent is there to be told.
   *
   * @throws `agent_unavailable` where the agent is not connected in time, or refuses
   */
  async request(
    op: string,
    args: RequestArgs | (() => RequestArgs),
    signal: AbortSignal,
  ): Promise<Record<string, unknown>> {
    const conversation = await orAbort(this.#connected.promise, signal).catch(() => {
      throw agentUnavailable({ reason: 'it is not connected' })
    })
    const id = this.#nextRequest++
    const answer = deferred<Record<string, unknown>>()
    this.#requests.set(id, answer)
    try {
      await conversation.send(encodeJson(FRAME.request, { id, op, ...(typeof args === 'function' ? args() : args) }))
      const reply = await orAbort(answer.promise, signal)
      if (reply['ok'] !== true)
        throw agentUnavailable({ reason: String(reply['message'] ?? `it refused ${op}`).slice(0, 1000) })
      return reply
    } catch (error) {
      if (error instanceof Fault) throw error
      throw agentUnavailable(
        { reason: signal.aborted ? `it did not answer ${op} in time` : 'its connection broke' },
        error,
      )
    } finally {
      this.#requests.delete(id)
    }
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#deaf)
    if (this.#current) this.#disconnect()
    for (const stranger of this.#strangers) stranger.close()
    this.#server.close()
    rmSync(this.#path, { force: true })
  }
}
