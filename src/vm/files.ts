import type { FileStat } from '../contract/files.ts'
import { accepted, agentFault, converse, open } from '../guest/conversation.ts'
import { FRAME, KIND, decodeJson, encode, encodeEmpty } from '../guest/frames.ts'
import { answerOf } from '../guest/messages.ts'
import { patiently } from '../guest/patience.ts'
import type { Host } from '../host.ts'
import { agentUnavailable } from '../hypervisor/errors.ts'
import { type Running, runningAgain } from './machine/running.ts'

const ANSWER_MS = 30_000
const CHUNK = 65_536

/** Looks at one path of a guest. @throws `vm_wrong_state`, `agent_unavailable`, `guest_refused` */
export const stat = async (host: Running, ref: string, path: string, follow: boolean): Promise<FileStat> => {
  const { machine } = await runningAgain(host, ref, 'look into', 'read')
  const { conversation, ok } = await patiently(machine, ANSWER_MS, undefined, (signal) =>
    converse(machine, 'stat', { path, follow }, signal),
  )
  conversation.close()
  return ok
}

/** Lists at most `limit` entries of a folder in a guest. */
export const listFolder = async (host: Running, ref: string, path: string, limit: number) => {
  const { machine } = await runningAgain(host, ref, 'look into', 'read')
  const { conversation, ok } = await patiently(machine, ANSWER_MS, undefined, (signal) =>
    converse(machine, 'list', { path, limit }, signal),
  )
  conversation.close()
  return ok
}

/** Unpacks a tar stream below a folder of the guest. The stream is read as the guest takes it. */
export const copyIn = async (
  host: Running,
  ref: string,
  { path, owner, archive }: { readonly path: string; readonly owner: 'keep' | 'root'; readonly archive: boolean },
  tar: ReadableStream<Uint8Array>,
  client: AbortSignal,
) => {
  const { machine } = await runningAgain(host, ref, 'copy into')
  // The agent answers with `ok` when the whole archive is unpacked, or with an error at any time before.
  const conversation = await patiently(machine, ANSWER_MS, client, (signal) =>
    open(machine, KIND.copyIn, { path, owner, archive }, signal),
  )
  const hangUp = () => {
    conversation.close()
  }
  client.addEventListener('abort', hangUp, { once: true })
  const sending = (async () => {
    for await (const part of tar) {
      for (let at = 0; at < part.byteLength; at += CHUNK)
        await conversation.send(encode(FRAME.stdin, part.subarray(at, at + CHUNK)))
    }
    await conversation.send(encodeEmpty(FRAME.eof))
  })()
  sending.catch(() => undefined)
  try {
    return answerOf('copyIn', await accepted(conversation, path, client))
  } finally {
    client.removeEventListener('abort', hangUp)
    conversation.close()
  }
}

/** Reads a file or folder of the guest as a tar stream; `isDir` says which. Not reading it holds the guest. */
export const copyOut = async (
  host: Pick<Host, 'config' | 'store' | 'ballast' | 'vms'>,
  ref: string,
  { path, follow, sparse }: { readonly path: string; readonly follow: boolean; readonly sparse: boolean },
  client: AbortSignal,
) => {
  const { machine } = await runningAgain(host, ref, 'copy out of', 'read')
  const { conversation, ok } = await patiently(machine, ANSWER_MS, client, (signal) =>
    converse(machine, 'copyOut', { path, follow, sparse }, signal),
  )
  const stream = new ReadableStream<Uint8Array>({
    pull: async (controller) => {
      const frame = await conversation.next().catch((error: unknown) => {
        conversation.close()
        throw error
      })
      if (frame?.type === FRAME.stdout) {
        controller.enqueue(new Uint8Array(frame.payload))
        return
      } // a copy: frames share the memory that they came in
      if (frame?.type === FRAME.eof) {
        conversation.close()
        controller.close()
        return
      }
      conversation.close()
      // An error in the midst must not look like a whole archive: the transfer breaks off.
      controller.error(
        frame?.type === FRAME.error
          ? agentFault(decodeJson(frame), path)
          : agentUnavailable({ reason: 'it went away during the copy' }),
      )
    },
    cancel: () => {
      conversation.close()
    },
  })
  // Half a character of UTF-16 fits no header.
  return { stream, name: ok.name.toWellFormed(), isDir: ok.is_dir }
}
