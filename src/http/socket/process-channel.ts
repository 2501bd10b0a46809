import type { TSchema } from '@sinclair/typebox'
import { CHANNEL, type ExecControl } from '../../contract/exec.ts'
import { agentUnavailable } from '../../hypervisor/errors.ts'
import { requestInvalid } from '../../lib/errors.ts'
import { deferred } from '../../lib/promise.ts'
import type { GuestProcess, Output } from '../../vm/machine/process.ts'
import { faultOrInternal } from '../problem.ts'
import { fit } from '../read.ts'
import type { OpenProcess } from '../handler.ts'
import { Inbox } from './inbox.ts'
import { Sender } from './sender.ts'
import { CLOSE, type Behavior, type Ws } from './behavior.ts'

/** Frames output as `contract/exec.ts` says: a channel byte, then the bytes. */
export const onChannel = (output: Output): Uint8Array => {
  const bytes = output.kind === 'control' ? Buffer.from(JSON.stringify(output.control)) : output.bytes
  const message = Buffer.allocUnsafe(1 + bytes.byteLength)
  message[0] = output.kind === 'control' ? CHANNEL.control : CHANNEL[output.kind]
  message.set(bytes, 1)
  return message
}

const control = (message: ExecControl): Uint8Array => onChannel({ kind: 'control', control: message })
const sayFault = (error: unknown): Uint8Array => {
  const fault = faultOrInternal(error)
  return control({
    type: 'error',
    code: fault.code,
    message: fault.message,
    ...(fault.hint === undefined ? {} : { hint: fault.hint }),
  })
}

const clamp = (n: number): number => Math.min(65_535, Math.max(1, Math.trunc(Number(n) || 1)))

const readStart = (schema: TSchema, text: string): unknown => {
  let said: unknown
  try {
    said = JSON.parse(text)
  } catch (error) {
    throw requestInvalid({ reason: 'its first message is no JSON' }, error)
  }
  return fit(schema, said)
}

/** Carries out one message of the client. */
const handle = async (guest: GuestProcess, message: Uint8Array): Promise<void> => {
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

/**
 * Speaks exec and attach: the first message says what shall run, the others are channels. A client that is far ahead
 * has ignored the windows that it was given, and is closed.
 */
export const speakProcess = (ws: Ws, schema: TSchema, open: OpenProcess<unknown>): Behavior => {
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
    await sender.send(sayFault(agentUnavailable({ reason: 'it went away' })))
  }
  const start = async (text: string) => {
    const guest = await open(readStart(schema, text), gone.signal)
    if (gone.signal.aborted) {
      guest.close()
      return
    }
    running = guest
    begun.resolve(guest)
    await sender.send(control({ type: 'started', pid: guest.pid, tty: guest.tty }))
    await pump(guest)
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
      if (!started || inbox.full) {
        ws.close(CLOSE.policy)
        return
      }
      const bytes = Buffer.from(message) // its memory is the socket's
      inbox.put(bytes.byteLength, async () => {
        await handle(await begun.promise, bytes)
      })
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
