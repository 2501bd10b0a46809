import { appendFileSync } from 'node:fs'
import { createServer, connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { Conversation } from '../../../guest/conversation.ts'
import {
  decodeJson,
  decodeOpen,
  encode,
  encodeEmpty,
  encodeJson,
  encodeOpen,
  FRAME,
  GENERATION,
  KIND,
  type Frame,
} from '../../../guest/frames.ts'
import { deferred, sleep } from '../../../lib/promise.ts'

/*
 * What stands in for VMM, guest and agent under the fake driver: the agent's protocol over the vsock socket, and a
 * handful of commands that are written here and touch nothing: `true false echo cat sleep sh -c "exit N"`. The control
 * socket answers one word a line.
 */

interface Task {
  readonly code: Promise<number>
  stdin(bytes: Uint8Array): void
  eof(): void
  signal(n: number): void
}
type Say = (stream: 1 | 2, bytes: Uint8Array) => void

/** Who a guest was told it is. */
interface Who {
  readonly hostname: string
  readonly machineId: string
}

/** Runs one of the commands; everything else is not found, as in a guest without it. */
const runCommand = (argv: readonly string[], who: Who, say: Say): Task => {
  const done = deferred<number>()
  const [name = '', ...args] = argv
  const task = {
    code: done.promise,
    stdin: (_: Uint8Array) => {},
    eof: () => {},
    signal: (n: number) => {
      done.resolve(128 + n)
    },
  }
  switch (name.split('/').at(-1)) {
    case 'true':
      done.resolve(0)
      break
    case 'false':
      done.resolve(1)
      break
    case 'echo':
      say(1, Buffer.from(`${args.join(' ')}\n`))
      done.resolve(0)
      break
    case 'hostname':
      say(1, Buffer.from(`${who.hostname}\n`))
      done.resolve(0)
      break
    case 'machine-id':
      say(1, Buffer.from(`${who.machineId}\n`))
      done.resolve(0)
      break
    case 'cat':
      task.stdin = (bytes) => {
        say(1, bytes)
      }
      task.eof = () => {
        done.resolve(0)
      }
      break
    case 'sleep':
      void sleep(Number(args[0]) * 1000).then(() => {
        done.resolve(0)
      })
      break
    case 'sh': {
      const script = args[0] === '-c' ? (args[1] ?? '') : ''
      const said = /echo ([^;]*)/.exec(script)?.[1]
      if (said !== undefined) say(1, Buffer.from(`${said.trim().replaceAll(/['"]/g, '')}\n`))
      if (/sleep (\S+)/.test(script))
        void sleep(Number(/sleep (\S+)/.exec(script)?.[1]) * 1000).then(() => {
          done.resolve(Number(/exit (\d+)/.exec(script)?.[1] ?? 0))
        })
      else done.resolve(Number(/exit (\d+)/.exec(script)?.[1] ?? 0))
      break
    }
    default:
      say(2, Buffer.from(`${name}: not found\n`))
      done.resolve(127)
  }
  return task
}

interface Workload {
  argv: string[]
  hold: boolean
  tty: boolean
}

/** What a fake machine is when it is saved. */
interface Memory {
  readonly secret: string | undefined
  readonly events: readonly { readonly seq: number; readonly body: Record<string, unknown> }[]
  readonly acked: number
  readonly seq: number
  readonly log: string
  readonly logEnded: boolean
  readonly workload: Workload | undefined
  readonly runs: boolean
  readonly exit: { readonly code: number; readonly signal: number | null } | undefined
  readonly who: Who
}

class FakeGuest {
  readonly #folder: string
  readonly #ended = deferred<string>()
  #over: string | undefined
  #paused = false
  readonly #held = new Set<() => void>()
  #secret: string | undefined
  #events: { seq: number; body: Record<string, unknown> }[] = []
  #acked = 0
  #seq = 0
  #session: Conversation | undefined
  #log: Buffer = Buffer.alloc(0)
  #logEnded = false
  readonly #followers = new Set<() => void>()
  #workload: Workload | undefined
  #task: Task | undefined
  #listeners = new Set<Say>()
  #exit: { code: number; signal: number | null } | undefined
  readonly #exited = deferred<void>()
  readonly #boot = Date.now()

  #who: Who = { hostname: '', machineId: '' }

  constructor(folder: string) {
    this.#folder = folder
  }

  /** Writes all that the guest is as text. */
  save(): string {
    const memory: Memory = {
      secret: this.#secret,
      events: this.#events,
      acked: this.#acked,
      seq: this.#seq,
      log: this.#log.toString('base64'),
      logEnded: this.#logEnded,
      workload: this.#workload,
      runs: this.#task !== undefined && this.#exit === undefined,
      exit: this.#exit,
      who: this.#who,
    }
    return JSON.stringify(memory)
  }

  /** Becomes, paused, what was saved. A workload that ran is begun again: its commands keep nothing. */
  restore(text: string): void {
    const memory = JSON.parse(text) as Memory
    this.#paused = true
    this.#secret = memory.secret
    this.#events = [...memory.events]
    this.#acked = memory.acked
    this.#seq = memory.seq
    this.#log = Buffer.from(memory.log, 'base64')
    this.#logEnded = memory.logEnded
    this.#workload = memory.workload
    this.#exit = memory.exit
    this.#who = memory.who
    if (memory.runs)
      void this.#running().then(() => {
        this.#startWorkload(false)
      })
  }

  get ended(): Promise<string> {
    return this.#ended.promise
  }
  get state(): string {
    return this.#over !== undefined ? 'ended' : this.#paused ? 'paused' : 'running'
  }
  pause(paused: boolean): void {
    this.#paused = paused
    if (paused) return
    for (const go of this.#held) go()
    this.#held.clear()
  }

  /** Waits until the processors run: a guest that is halted hears what was said to it when they run again. */
  async #running(): Promise<void> {
    while (this.#paused)
      await new Promise<void>((go) => {
        this.#held.add(go)
      })
  }

  end(reason: string): void {
    if (this.#over !== undefined) return
    this.#over = reason
    this.#ended.resolve(reason)
    this.#session?.close()
  }

  /** Keeps the session, and makes it again when the daemon comes back. */
  async serveSession(): Promise<void> {
    for (let wait = 5; this.#over === undefined; wait = Math.min(wait * 2, 200)) {
      await this.#running()
      const socket = connect(join(this.#folder, 'vsock_1024'))
      const conversation = new Conversation(socket, 'host')
      try {
        await conversation.send(
          encodeOpen(KIND.session, {
            boot_id: 'fake',
            agent: 'fake',
            kernel: 'none',
            secret: this.#secret ?? null,
            last_event: this.#seq,
          }),
        )
        const welcome = await conversation.next()
        if (welcome?.type === FRAME.ok) {
          this.#take(decodeJson(welcome))
          this.#session = conversation
          wait = 5
          for (const event of this.#events)
            if (event.seq > this.#acked) await conversation.send(encodeJson(FRAME.event, event.body))
          for await (const frame of conversation) this.#heard(frame)
        }
      } catch {
        /* the daemon is away */
      } finally {
        conversation.close()
        this.#session = undefined
      }
      await sleep(wait)
    }
  }

  #take(welcome: Record<string, unknown>): void {
    if (welcome['resumed'] === true) {
      this.#acked = Number(welcome['acked'])
      return
    }
    this.#secret = String(welcome['secret'])
    this.#who = { hostname: String(welcome['hostname']), machineId: String(welcome['machine_id']) }
    this.#workload = (welcome['workload'] as Workload | null) ?? undefined
    this.#emit({ type: 'ready', boot_ms: Date.now() - this.#boot })
    if (this.#workload && !this.#workload.hold) this.#startWorkload()
  }

  #emit(body: Record<string, unknown>): void {
    const event = { seq: ++this.#seq, body: { seq: this.#seq, ...body } }
    this.#events.push(event)
    this.#session?.send(encodeJson(FRAME.event, event.body)).catch(() => undefined)
  }

  #startWorkload(first = true): void {
    if (!this.#workload || this.#task) return
    this.#task = runCommand(this.#workload.argv, this.#who, (stream, bytes) => {
      this.#append(bytes)
      for (const listener of this.#listeners) listener(stream, bytes)
    })
    if (first) this.#emit({ type: 'started', pid: 2 })
    void this.#task.code.then((code) => {
      this.#exit = { code, signal: code > 128 ? code - 128 : null }
      this.#logEnded = true
      this.#wake()
      this.#exited.resolve()
      this.#emit({
        type: 'exited',
        code,
        signal: this.#exit.signal,
        oom: false,
        message: code === 0 ? '' : `exited with code ${code}`,
      })
    })
  }

  #heard(frame: Frame): void {
    if (frame.type === FRAME.ack) {
      this.#acked = Number(new DataView(frame.payload.buffer, frame.payload.byteOffset).getBigUint64(0, true))
      if (this.#exit && this.#acked >= this.#seq)
        setTimeout(() => {
          this.end('poweroff')
        }, 5)
      return
    }
    if (frame.type !== FRAME.request) return
    const { id, op, signal } = decodeJson(frame)
    void this.#session?.send(encodeJson(FRAME.reply, { id, ok: true }))
    if (op === 'stop') this.stop()
    if (op === 'signal') this.#task?.signal(Number(signal))
  }

  stop(): void {
    if (this.#task && !this.#exit) this.#task.signal(15)
    else this.end('poweroff')
  }

  #append(bytes: Uint8Array): void {
    this.#log = Buffer.concat([this.#log, bytes])
    this.#wake()
  }
  #wake(): void {
    for (const wake of this.#followers) wake()
  }

  async converse(socket: Socket): Promise<void> {
    const conversation = new Conversation(socket, 'host')
    try {
      const first = await conversation.next()
      if (!first) return
      await this.#running()
      const { kind, body, generation } = decodeOpen(first)
      const refuse = (code: string, message: string) => conversation.send(encodeJson(FRAME.error, { code, message }))
      if (generation !== GENERATION) await refuse('generation_unknown', 'unknown generation')
      else if (kind === KIND.exec) await this.#exec(conversation, body)
      else if (kind === KIND.attach) await this.#attach(conversation)
      else if (kind === KIND.logs) await this.#logs(conversation, Number(body['from'] ?? 0), body['follow'] === true)
      else if (kind === KIND.metrics) await conversation.send(encodeJson(FRAME.ok, metrics(Date.now() - this.#boot)))
      else if (kind === KIND.identity) {
        this.#who = { hostname: String(body['hostname']), machineId: String(body['machine_id']) }
        await conversation.send(encodeJson(FRAME.ok, {}))
      } else if (kind === KIND.stat)
        await conversation.send(
          encodeJson(FRAME.ok, {
            exists: false,
            is_dir: false,
            is_file: false,
            is_symlink: false,
            link_target: null,
            mode: 0,
            size: 0,
            uid: 0,
            gid: 0,
            mtime_ms: 0,
          }),
        )
      else await refuse('kind_unknown', `the fake guest has no conversation of kind ${kind}`)
      conversation.endWriting()
    } catch {
      /* the peer went away */
    } finally {
      setTimeout(() => {
        conversation.close()
      }, 1000)
    }
  }

  async #exec(conversation: Conversation, body: Record<string, unknown>): Promise<void> {
    await conversation.send(encodeJson(FRAME.ok, { pid: 100 }))
    const sends: Promise<void>[] = []
    const task = runCommand(body['argv'] as string[], this.#who, (stream, bytes) => {
      sends.push(conversation.send(encode(stream === 1 ? FRAME.stdout : FRAME.stderr, bytes)))
    })
    if (body['stdin'] !== true) task.eof()
    void this.#input(conversation, task)
    const timeout = Number(body['timeout_ms'] ?? 0)
    const code = await Promise.race([task.code, ...(timeout > 0 ? [sleep(timeout).then(() => 124)] : [])])
    await Promise.all(sends)
    await conversation.send(encodeJson(FRAME.exit, { code, signal: null, message: null }))
  }

  async #attach(conversation: Conversation): Promise<void> {
    if (!this.#workload) {
      await conversation.send(encodeJson(FRAME.error, { code: 'not_ready', message: 'there is no workload' }))
      return
    }
    await conversation.send(encodeJson(FRAME.ok, { tty: this.#workload.tty, released: this.#task === undefined }))
    const sends: Promise<void>[] = []
    const listener: Say = (stream, bytes) => {
      sends.push(conversation.send(encode(stream === 1 ? FRAME.stdout : FRAME.stderr, bytes)))
    }
    this.#listeners.add(listener)
    this.#startWorkload()
    if (this.#task) void this.#input(conversation, this.#task)
    await this.#exited.promise
    await Promise.all(sends)
    this.#listeners.delete(listener)
    await conversation.send(encodeJson(FRAME.exit, { ...this.#exit, message: null }))
  }

  async #input(conversation: Conversation, task: Task): Promise<void> {
    try {
      for await (const frame of conversation) {
        if (frame.type === FRAME.stdin) {
          task.stdin(Buffer.from(frame.payload))
          const more = Buffer.alloc(4)
          more.writeUInt32LE(frame.payload.byteLength)
          await conversation.send(encode(FRAME.window, more))
        } else if (frame.type === FRAME.eof) task.eof()
        else if (frame.type === FRAME.signal) task.signal(frame.payload[0] ?? 15)
      }
    } catch {
      /* hung up */
    }
  }

  async #logs(conversation: Conversation, from: number, follow: boolean): Promise<void> {
    await conversation.send(encodeJson(FRAME.ok, { oldest: 0, next: this.#log.byteLength }))
    for (let at = from; ; ) {
      const bytes = this.#log.subarray(at)
      if (bytes.byteLength > 0) {
        const head = Buffer.alloc(17)
        head[0] = 1
        head.writeBigUInt64LE(BigInt(at), 1)
        head.writeBigUInt64LE(BigInt(Date.now()) * 1_000_000n, 9)
        await conversation.send(encode(FRAME.log, Buffer.concat([head, bytes])))
        at += bytes.byteLength
      } else if (!follow || this.#logEnded) {
        await conversation.send(encodeEmpty(FRAME.eof))
        return
      } else
        await new Promise<void>((resolve) => {
          const wake = () => {
            this.#followers.delete(wake)
            resolve()
          }
          this.#followers.add(wake)
        })
    }
  }
}

const metrics = (uptimeMs: number) => ({
  uptime_ms: uptimeMs,
  cpu: { user_ms: 0, system_ms: 0, idle_ms: uptimeMs, steal_ms: 0, count: 1 },
  load: [0, 0, 0],
  memory: { total: 0, available: 0, used: 0, cached: 0, swap: 0 },
  disks: [],
  processes: 1,
  workload: { pid: null, running: false },
})

/** Inherited, listening: vsock, console, control. */
const FD = { vsock: 3, console: 4, control: 5 } as const

const listen = (fd: number, serve: (socket: Socket) => void): Promise<void> =>
  new Promise((resolve, reject) => {
    createServer({ allowHalfOpen: true }, serve)
      .once('error', reject)
      .listen({ fd }, () => {
        resolve()
      })
  })

const firstLine = (socket: Socket, take: (line: string) => void): void => {
  let text = ''
  const read = () => {
    for (let chunk = socket.read() as Buffer | null; chunk !== null; chunk = socket.read() as Buffer | null) {
      text += chunk.toString('latin1')
      const end = text.indexOf('\n')
      if (end < 0) continue
      socket.off('readable', read)
      if (text.length > end + 1) socket.unshift(Buffer.from(text.slice(end + 1), 'latin1'))
      take(text.slice(0, end))
      return
    }
  }
  socket.on('readable', read)
  socket.on('error', () => undefined)
}

/** Runs a fake machine as a process of its own, and gives its exit code. */
export const runFakeMachine = async (argv: readonly string[]): Promise<number> => {
  const { folder, uuid, consoleLog, shape, saved } = JSON.parse(argv[0] ?? '') as {
    folder: string
    uuid: string
    consoleLog: string
    shape: string
    saved?: string
  }
  const guest = new FakeGuest(folder)
  if (saved !== undefined) guest.restore(saved)
  await listen(FD.vsock, (socket) => {
    firstLine(socket, (line) => {
      if (line !== 'CONNECT 1024') {
        socket.destroy()
        return
      }
      socket.write('OK 1\n')
      void guest.converse(socket)
    })
  })
  await listen(FD.console, (socket) => {
    socket.on('error', () => undefined)
    socket.on('data', (bytes) => {
      socket.write(bytes)
    })
  })
  await listen(FD.control, (socket) => {
    firstLine(socket, (op) => {
      const say = (word: string) => {
        socket.end(`${word}\n`)
      }
      if (op === 'uuid') say(uuid)
      else if (op === 'shape') say(shape)
      else if (op === 'state') say(guest.state)
      else if (op === 'pause' || op === 'resume') {
        guest.pause(op === 'pause')
        say('ok')
      } else if (op === 'save') say(guest.save())
      else if (op === 'button') {
        guest.stop()
        say('ok')
      } else if (op === 'ended') void guest.ended.then(say)
      else if (op === 'panic' || op === 'reboot' || op === 'poweroff') {
        guest.end(op)
        say('ok')
      } // what a test makes a guest do
      else say('unknown')
    })
  })
  appendFileSync(consoleLog, 'fake machine up\n')
  void guest.serveSession()
  await new Promise<never>(() => undefined)
  return 0
}
