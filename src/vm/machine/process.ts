import type { ExecControl } from '../../contract/exec.ts'
import { type Conversation, agentFault, converse } from '../../guest/conversation.ts'
import {
  FRAME,
  type Frame,
  FrameError,
  STDIN_WINDOW,
  decodeJson,
  decodeWindow,
  encode,
  encodeEmpty,
  encodeResize,
  encodeSignal,
} from '../../guest/frames.ts'
import { ExitMessage, readAs } from '../../guest/messages.ts'
import { patiently } from '../../guest/patience.ts'
import type { Machine } from '../../hypervisor/driver.ts'
import { agentUnavailable } from '../../hypervisor/errors.ts'
import { Fault } from '../../lib/fault.ts'
import { orAbort } from '../../lib/promise.ts'

/** How long the agent may take to start a process. */
const START_MS = 30_000

/**
 * Opens a conversation about a process, which an agent answers at once. `late` ends the wait for it too.
 *
 * @throws `agent_unavailable`, also where the agent does not answer in time
 */
export const startProcess = async <Q extends 'exec' | 'attach'>(
  machine: Machine,
  kind: Q,
  body: Record<string, unknown>,
  client: AbortSignal,
  late?: AbortSignal,
) => {
  const caller = late ? AbortSignal.any([client, late]) : client
  try {
    return await patiently(machine, START_MS, caller, (signal) => converse(machine, kind, body, signal))
  } catch (error) {
    if (late?.aborted !== true || error instanceof Fault) throw error
    throw agentUnavailable({ reason: 'it does not answer' }, error)
  }
}

/** A process of the guest with its streams: what an edge needs, whatever it is spoken to with. */
export interface GuestProcess {
  readonly pid: number | null
  readonly tty: boolean
  /**
   * Takes the next of its output, its window or its end; undefined where the guest went away. Slow takers hold the
   * process.
   */
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

/**
 * Makes a process of the guest out of the conversation that it was started or attached with. `late` is when its guest
 * must have said that it ended: one that stands still says nothing.
 */
export const processOf = (
  conversation: Conversation,
  pid: number | null,
  tty: boolean,
  late?: AbortSignal,
): GuestProcess => {
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
        const frame = await (late ? orAbort(conversation.next(), late) : conversation.next())
        return frame && outputOf(frame)
      } catch (error) {
        if (late?.aborted) {
          conversation.close()
          throw agentUnavailable({ reason: 'the command had to end by now, and the guest does not say so' }, error)
        }
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
      throw agentFault(decodeJson(frame), undefined)
    default:
      throw agentUnavailable({ reason: `it sent frame 0x${frame.type.toString(16)} in an exec` })
  }
}
