import type { AttachStart, ExecControl, ExecStart } from '../contract/exec.ts'
import { type Conversation, asFault, converse } from '../guest/conversation.ts'
import {
  FRAME,
  type Frame,
  FrameError,
  KIND,
  STDIN_WINDOW,
  decodeJson,
  decodeWindow,
  encode,
  encodeEmpty,
  encodeResize,
  encodeSignal,
} from '../guest/frames.ts'
import { ExitMessage, readAs } from '../guest/messages.ts'
import type { Host } from '../host.ts'
import { agentUnavailable } from '../hypervisor/errors.ts'
import { Fault } from '../lib/fault.ts'
import { running } from './machine/running.ts'
import { byUid } from './row/lookup.ts'
import { shutDown } from './machine/shutdown.ts'

/** How long the agent may take to start a process. */
const START_MS = 30_000

/** A process of the guest with its streams: what an edge needs, whatever it is spoken to with. */
export interface GuestProcess {
  readonly pid: number | null
  readonly tty: boolean
  /** Takes the next of its output, its window or its end; undefined where the guest went away. Slow takers hold the process. */
  next(): Promise<Output | undefined>
  /** Resolves when there is room for more. Never send more than the windows allow. */
  write(bytes: Uint8Array): Promise<void>
  end(): Promise<void>
  resize(cols: number, rows: number): Promise<void>
  signal(signal: number): Promise<void>
  /** Hangs up: the agent ends what an exec started. */
  close(): void
}
export type Output =
  | { readonly kind: 'stdout' | 'stderr'; readonly bytes: Uint8Array }
  | { readonly kind: 'control'; readonly control: ExecControl }

const STDIN_CHUNK = 65_536

const processOf = (conversation: Conversation, pid: number | null, tty: boolean): GuestProcess => {
  let first: ExecControl | undefined = { type: 'window', bytes: STDIN_WINDOW }
  return {
    pid,
    tty,
    next: async () => {
      if (first) {
        const control = first
        first = undefined
        return { kind: 'control', control }
      }
      try {
        const frame = await conversation.next()
        return frame && outputOf(frame)
      } catch (error) {
        throw error instanceof FrameError ? agentUnavailable({ reason: error.message }, error) : error
      }
    },
    write: async (bytes) => {
      for (let at = 0; at < bytes.byteLength; at += STDIN_CHUNK)
        await conversation.send(encode(FRAME.stdin, bytes.subarray(at, at + STDIN_CHUNK)))
    },
    end: () => conversation.send(encodeEmpty(FRAME.eof)),
    resize: (cols, rows) => conversation.send(encodeResize(cols, rows)),
    signal: (signal) => conversation.send(encodeSignal(signal)),
    close: () => {
      conversation.close()
    },
  }
}

const outputOf = (frame: Frame): Output => {
  switch (frame.type) {
    case FRAME.stdout:
      return { kind: 'stdout', bytes: frame.payload }
    case FRAME.stderr:
      return { kind: 'stderr', bytes: frame.payload }
    case FRAME.window:
      return { kind: 'control', control: { type: 'window', bytes: decodeWindow(frame) } }
    case FRAME.exit: {
      return { kind: 'control', control: { type: 'exit', ...readAs(ExitMessage, decodeJson(frame)) } }
    }
    case FRAME.error:
      throw asFault(decodeJson(frame), undefined)
    default:
      throw agentUnavailable({ reason: `it sent frame 0x${frame.type.toString(16)} in an exec` })
  }
}

/** @throws `vm_wrong_state`, `agent_unavailable`, `guest_path_not_found` (cwd), `guest_user_not_found` */
export const exec = async (
  host: Pick<Host, 'store' | 'vms'>,
  ref: string,
  want: ExecStart,
  client: AbortSignal,
): Promise<GuestProcess> => {
  const { machine } = running(host, ref, 'exec in', 'read')
  const tty = want.tty === true
  const { conversation, ok } = await converse(
    machine,
    KIND.exec,
    {
      argv: want.argv,
      env: want.env ?? {},
      cwd: want.cwd,
      user: want.user,
      tty,
      cols: want.cols,
      rows: want.rows,
      stdin: want.stdin === true,
      timeout_ms: want.timeout_ms,
      path: undefined,
    },
    AbortSignal.any([client, AbortSignal.timeout(START_MS)]),
  )
  return processOf(conversation, typeof ok['pid'] === 'number' ? ok['pid'] : null, tty)
}

/** Attaches to the workload; one that is held starts now. @throws `vm_wrong_state`, `agent_unavailable` */
export const attach = async (
  host: Host,
  ref: string,
  want: AttachStart,
  client: AbortSignal,
): Promise<GuestProcess> => {
  const { row, live, machine } = running(host, ref, 'attach to', 'read')
  const { conversation, ok } = await converse(
    machine,
    KIND.attach,
    {
      stdin: want.stdin === true,
      replay: want.replay === true,
      cols: want.cols,
      rows: want.rows,
    },
    AbortSignal.any([client, AbortSignal.timeout(START_MS)]),
  )
  live.attached = true
  const attached = processOf(conversation, null, ok['tty'] === true)
  if (!row.spec.workload.hold || !row.spec.policy.auto_remove) return attached
  // `run`: who held the workload back until they could attach owns it; a vm that removes itself does not outlive them
  return {
    ...attached,
    close: () => {
      attached.close()
      const now = byUid(host.store, row.uid)
      if (now?.state === 'running' && host.vms.live.get(row.uid) === live)
        void host.vms.queue.run(row.uid, () => shutDown(host, row.uid, { timeout_s: 1 })).catch(() => undefined)
    },
  }
}

/** Of each stream, in the answer of a buffered exec. */
const BUFFER_MAX = 1_048_576

/** Runs a command to its end and answers with what it said. */
export const run = async (
  host: Pick<Host, 'store' | 'vms'>,
  ref: string,
  want: Omit<ExecStart, 'tty' | 'stdin'> & { readonly input?: string },
  client: AbortSignal,
) => {
  const { input, ...rest } = want
  const running = await exec(host, ref, { ...rest, stdin: input !== undefined }, client)
  const hangUp = () => {
    running.close()
  }
  client.addEventListener('abort', hangUp, { once: true })
  const held = { stdout: [] as Uint8Array[], stderr: [] as Uint8Array[] }
  const size = { stdout: 0, stderr: 0 }
  let truncated = false
  try {
    const feeding = input === undefined ? undefined : feed(running, Buffer.from(input))
    for (let output = await running.next(); output; output = await running.next()) {
      if (output.kind === 'control') {
        if (output.control.type === 'window') feeding?.open(output.control.bytes)
        if (output.control.type === 'exit') {
          const both = { stdout: Buffer.concat(held.stdout), stderr: Buffer.concat(held.stderr) }
          const encoding = isUtf8(both.stdout) && isUtf8(both.stderr) ? ('utf8' as const) : ('base64' as const)
          return {
            exit_code: output.control.code,
            signal: output.control.signal,
            truncated,
            encoding,
            stdout: both.stdout.toString(encoding),
            stderr: both.stderr.toString(encoding),
          }
        }
      } else {
        const room = BUFFER_MAX - size[output.kind]
        const bytes = Buffer.from(output.bytes.subarray(0, Math.max(0, room)))
        if (output.bytes.byteLength > room) truncated = true
        size[output.kind] += bytes.byteLength
        if (bytes.byteLength > 0) held[output.kind].push(bytes)
      }
    }
    throw agentUnavailable({ reason: 'the guest went away while the command ran' })
  } catch (error) {
    if (error instanceof Fault) throw error
    throw agentUnavailable({ reason: 'the guest went away while the command ran' }, error)
  } finally {
    client.removeEventListener('abort', hangUp)
    running.close()
  }
}

const isUtf8 = (bytes: Buffer): boolean => {
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes)
    return true
  } catch {
    return false
  }
}

/** Sends `bytes` as the windows allow, then end of file. */
const feed = (to: GuestProcess, bytes: Buffer): { open(more: number): void } => {
  let at = 0
  let room = 0
  let ended = false
  let sending = Promise.resolve()
  const go = async () => {
    const part = bytes.subarray(at, at + room)
    at += part.byteLength
    room -= part.byteLength
    if (part.byteLength > 0) await to.write(part)
    if (at >= bytes.byteLength && !ended) {
      ended = true
      await to.end()
    }
  }
  return {
    open: (more) => {
      room += more
      sending = sending.then(go).catch(() => undefined)
    },
  }
}
