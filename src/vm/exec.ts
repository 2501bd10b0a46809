import type { ExecStart } from '../contract/exec.ts'
import { agentUnavailable } from '../hypervisor/errors.ts'
import { processOf, startProcess, type GuestProcess } from './machine/process.ts'
import { Fault } from '../lib/fault.ts'
import type { Host } from '../host.ts'
import { execOf } from './machine/configuration.ts'
import { type Running, runningAgain } from './machine/running.ts'

/** How much later than a command's own time-out its guest, which ends it, may say so. */
const LATE_MS = 5000

/**
 * Starts a process in the guest. @throws `vm_wrong_state`, `agent_unavailable`, `guest_path_not_found` (cwd),
 * `guest_user_not_found`
 */
export const exec = async (
  host: Running & Pick<Host, 'images'>,
  ref: string,
  want: ExecStart,
  client: AbortSignal,
): Promise<GuestProcess> => {
  const { row, machine } = await runningAgain(host, ref, 'exec in', 'read')
  const tty = want.tty === true
  const late = want.timeout_ms === undefined ? undefined : AbortSignal.timeout(want.timeout_ms + LATE_MS)
  const { conversation, ok } = await startProcess(
    machine,
    'exec',
    {
      argv: want.argv,
      ...execOf(row, host.images.byDigest(row.imageDigest).config, want),
      tty,
      cols: want.cols,
      rows: want.rows,
      stdin: want.stdin === true,
      timeout_ms: want.timeout_ms,
      path: undefined,
    },
    client,
    late,
  )
  return processOf(conversation, ok.pid, tty, late)
}

/** A buffered exec answers with at most this much of each stream, in bytes. */
const BUFFER_MAX = 1_048_576

/** Runs a command to its end and answers with what it said. */
export const execToEnd = async (
  host: Running & Pick<Host, 'images'>,
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
