import type { ServerWebSocket } from 'bun'
import type { Duplex } from 'node:stream'
import { Value } from '@sinclair/typebox/value'
import type { TSchema } from '@sinclair/typebox'
import { AttachStart, CHANNEL, ExecStart, type ExecControl } from '../contract/exec.ts'
import type { Host } from '../host.ts'
import { Fault } from '../lib/fault.ts'
import { deferred } from '../lib/wait.ts'
import { attach, exec, onChannel, type GuestProcess } from '../vm/exec.ts'
import { viewConsole } from '../vm/console.ts'
import { dial } from '../vm/proxy.ts'
import { asFault } from './problem.ts'

/** What a WebSocket is for; kept with the socket from its upgrade on. */
export type SocketData = { behavior?: Behavior | undefined } & (
  | { readonly kind: 'exec' | 'attach' | 'console'; readonly name: string }
  | {
      readonly kind: 'forward'
      readonly name: string
      readonly port: number | undefined
      readonly unix: string | undefined
    }
)

/** One end of a socket's conversation: what comes from the client goes in here. */
interface Behavior {
  message(message: string | Uint8Array): void
  close(): void
  drained(): void
}
type Ws = ServerWebSocket<SocketData>

/** Bytes that may wait for one slow client before its source is held. */
const BACKLOG_MAX = 1_048_576
/** Messages of one client that wait for the guest before the client is held. */
const QUEUE_MAX = 4_194_304
const CLOSE = { normal: 1000, policy: 1008, broken: 1011 } as const

/** Sends and waits while the client is slow; false once it has gone. */
class Sender {
  readonly #ws: Ws
  #drained: (() => void) | undefined
  gone = false

  constructor(ws: Ws) {
    this.#ws = ws
  }

  async send(message: Uint8Array): Promise<boolean> {
    if (this.gone) return false
    this.#ws.send(message)
    while (!this.gone && this.#ws.getBufferedAmount() > BACKLOG_MAX)
      await new Promise<void>((resolve) => {
        this.#drained = resolve
      })
    return !this.gone
  }

  drained(): void {
    this.#drained?.()
    this.#drained = undefined
  }
  close(): void {
    this.gone = true
    this.drained()
  }
}

/** Work on a client's messages one after the other, never two at once, the client held when it is far ahead. */
class Inbox {
  #tail: Promise<void> = Promise.resolve()
  #waiting = 0
  readonly #failed: () => void

  constructor(failed: () => void) {
    this.#failed = failed
  }

  /** False where the client is too far ahead: it ignores the windows it was given. */
  take(bytes: number, work: () => Promise<void>): boolean {
    if (this.#waiting > QUEUE_MAX) return false
    this.#waiting += bytes
    this.#tail = this.#tail
      .then(work)
      .catch(() => {
        this.#failed()
      })
      .finally(() => {
        this.#waiting -= bytes
      })
    return true
  }
}

const control = (message: ExecControl): Uint8Array => onChannel({ kind: 'control', control: message })
const sayFault = (error: unknown): Uint8Array => {
  const fault = asFault(error)
  return control({
    type: 'error',
    code: fault.code,
    message: fault.message,
    ...(fault.hint === undefined ? {} : { hint: fault.hint }),
  })
}

/** Exec and attach: the first message says what, the others are channels. */
const processBehavior = <S extends TSchema, T>(
  ws: Ws,
  schema: S,
  begin: (want: T, signal: AbortSignal) => Promise<GuestProcess>,
): Behavior => {
  const gone = new AbortController()
  const sender = new Sender(ws)
  const inbox = new Inbox(() => {
    ws.close(CLOSE.broken)
  })
  const begun = deferred<GuestProcess>() // what the client says meanwhile waits for it
  let running: GuestProcess | undefined
  let started = false

  const pump = async (guest: GuestProcess) => {
    for (let output = await guest.next(); output; output = await guest.next()) {
      if (!(await sender.send(onChannel(output)))) return
      if (output.kind === 'control' && output.control.type === 'exit') return
    }
    await sender.send(
      sayFault(new Fault('agent_unavailable', 'unavailable', 'Cannot reach the agent in the guest: it went away')),
    )
  }
  const start = async (text: string) => {
    let want: unknown
    try {
      want = JSON.parse(text)
    } catch {
      throw new Fault('request_invalid', 'invalid', 'Cannot read the request: its first message is no JSON')
    }
    const wrong = Value.Errors(schema, want).First()
    if (wrong)
      throw new Fault(
        'request_invalid',
        'invalid',
        `Cannot read the request: ${wrong.path.slice(1).replaceAll('/', '.')}: ${wrong.message}`,
      )
    const guest = await begin(want as T, gone.signal)
    if (gone.signal.aborted) {
      guest.close()
      return
    }
    running = guest
    begun.resolve(guest)
    await sender.send(control({ type: 'started', pid: guest.pid, tty: guest.tty }))
    await pump(guest)
  }
  const handle = async (guest: GuestProcess, message: Uint8Array) => {
    const body = message.subarray(1)
    if (message[0] === CHANNEL.stdin) {
      await guest.write(body)
      return
    }
    if (message[0] !== CHANNEL.control) return
    const said = JSON.parse(Buffer.from(body).toString('utf8')) as ExecControl
    if (said.type === 'eof') await guest.end()
    else if (said.type === 'resize') await guest.resize(clamp(said.cols), clamp(said.rows))
    else if (said.type === 'signal' && Number.isInteger(said.signal) && said.signal >= 1 && said.signal <= 64)
      await guest.signal(said.signal)
  }
  return {
    message: (message) => {
      if (typeof message === 'string') {
        if (started) {
          ws.close(CLOSE.policy)
          return
        }
        started = true
        start(message)
          .catch(async (error: unknown) => {
            begun.reject(error)
            await sender.send(sayFault(error))
          })
          .finally(() => {
            running?.close()
            ws.close(CLOSE.normal)
          })
          .catch(() => undefined)
        return
      }
      const bytes = Buffer.from(message) // its memory is the socket's
      if (
        !started ||
        !inbox.take(bytes.byteLength, async () => {
          await handle(await begun.promise, bytes)
        })
      )
        ws.close(CLOSE.policy)
    },
    close: () => {
      gone.abort()
      sender.close()
      running?.close()
    },
    drained: () => {
      sender.drained()
    },
  }
}

const clamp = (n: number): number => Math.min(65_535, Math.max(1, Math.trunc(Number(n) || 1)))

/** A raw stream into the guest, both ways: binary messages are bytes, an empty one is the end of its sender's half. */
const streamBehavior = (ws: Ws, open: (signal: AbortSignal) => Promise<Duplex>): Behavior => {
  const gone = new AbortController()
  const sender = new Sender(ws)
  const inbox = new Inbox(() => {
    ws.close(CLOSE.broken)
  })
  const opened = open(gone.signal)
  opened
    .then(async (stream) => {
      stream.on('error', () => undefined)
      for await (const chunk of stream.iterator({ destroyOnReturn: false }))
        if (!(await sender.send(chunk as Uint8Array))) return
      await sender.send(new Uint8Array(0)) // its half has ended; the client's goes on until it ends too
      if (!stream.writableFinished && !stream.destroyed)
        await new Promise<void>((resolve) => {
          stream.once('finish', resolve)
          stream.once('close', resolve)
        })
      ws.close(CLOSE.normal)
    })
    .catch((error: unknown) => {
      const fault = asFault(error)
      ws.close(CLOSE.broken, JSON.stringify({ code: fault.code, message: fault.message }).slice(0, 120))
    })
  return {
    message: (message) => {
      const bytes = Buffer.from(message)
      const ahead = inbox.take(bytes.byteLength, async () => {
        const stream = await opened
        if (bytes.byteLength === 0) {
          stream.end()
          return
        }
        if (!stream.write(bytes))
          await new Promise<void>((resolve) => {
            stream.once('drain', resolve)
            stream.once('close', resolve)
          })
      })
      if (!ahead) ws.close(CLOSE.policy)
    },
    close: () => {
      gone.abort()
      sender.close()
      opened.then(
        (stream) => {
          stream.destroy()
        },
        () => undefined,
      )
    },
    drained: () => {
      sender.drained()
    },
  }
}

const consoleBehavior = (ws: Ws, host: Host, name: string): Behavior => {
  const sender = new Sender(ws)
  try {
    const viewer = viewConsole(
      host,
      name,
      (bytes) => sender.send(bytes),
      () => {
        ws.close(CLOSE.normal)
      },
    )
    return {
      message: (message) => {
        viewer.type(typeof message === 'string' ? Buffer.from(message) : message)
      },
      close: () => {
        sender.close()
        viewer.leave()
      },
      drained: () => {
        sender.drained()
      },
    }
  } catch (error) {
    const fault = asFault(error)
    ws.close(CLOSE.broken, JSON.stringify({ code: fault.code, message: fault.message }).slice(0, 120))
    return { message: () => undefined, close: () => undefined, drained: () => undefined }
  }
}

export const behave = (host: Host, ws: Ws): Behavior => {
  const { data } = ws
  switch (data.kind) {
    case 'exec':
      return processBehavior(ws, ExecStart, (want: ExecStart, signal) => exec(host, data.name, want, signal))
    case 'attach':
      return processBehavior(ws, AttachStart, (want: AttachStart, signal) => attach(host, data.name, want, signal))
    case 'console':
      return consoleBehavior(ws, host, data.name)
    case 'forward':
      return streamBehavior(ws, (signal) => dial(host, data.name, data.unix ?? data.port ?? 0, signal))
  }
}
