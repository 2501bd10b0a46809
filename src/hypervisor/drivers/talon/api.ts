import { Type, type Static, type TSchema } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { requestWithFds } from './request-with-fds.ts'

/** The most bytes of one answer: the longest is a full ring of events, some 64 KiB. */
const ANSWER_BYTES_MAX = 2 ** 20
/** How long a verb other than the wait for events may take. */
const VERB_MS = 10_000
/** What an answer to a wait may take longer than the wait. */
const WAIT_SLACK_MS = 5000

export const VmInfo = Type.Object({ state: Type.String({ maxLength: 32 }) })

export const VmEvent = Type.Object({
  seq: Type.Integer({ minimum: 0 }),
  source: Type.String(),
  event: Type.String(),
  properties: Type.Unknown(),
})
export type VmEvent = Static<typeof VmEvent>

export const VmEvents = Type.Object({
  events: Type.Array(VmEvent, { maxItems: 1024 }),
  last: Type.Integer({ minimum: 0 }),
  gap: Type.Boolean(),
})
export type VmEvents = Static<typeof VmEvents>

/** Whether memory became the template itself, or was copied. */
export const Forked = Type.Object({ memory: Type.Union([Type.Literal('template'), Type.Literal('copy')]) })

const Refusal = Type.Object({
  code: Type.String(),
  message: Type.String(),
  chain: Type.Optional(Type.Array(Type.String())),
})

/** What the VMM refused to do, in its own words. */
export class VerbRefused extends Error {
  override name = 'VerbRefused'
  readonly status: number
  readonly code: string

  constructor(status: number, code: string, message: string) {
    super(message)
    this.status = status
    this.code = code
  }
}

/**
 * Cloud Hypervisor's REST dialect on a Unix socket (its openapi, v54), a connection a request. The VMM at the other end
 * runs what its guest makes of it: an answer is bounded, and checked before anything is believed.
 */
export class VmmApi {
  readonly #path: string

  constructor(path: string) {
    this.#path = path
  }

  info(signal: AbortSignal, ms = VERB_MS): Promise<Static<typeof VmInfo>> {
    return this.#ask('GET', 'vm.info', VmInfo, ms, signal)
  }

  /**
   * Reads the events after a sequence number: at once where there are some, else when there are or the time is over.
   */
  events(after: number, waitMs: number, signal: AbortSignal): Promise<VmEvents> {
    return this.#ask('GET', `vm.events?after=${after}&timeout_ms=${waitMs}`, VmEvents, waitMs + WAIT_SLACK_MS, signal)
  }

  async put(verb: 'vm.pause' | 'vm.resume' | 'vm.power-button', signal: AbortSignal): Promise<void> {
    await this.#ask('PUT', verb, Type.Unknown(), VERB_MS, signal)
  }

  /** Shows the guest that the links of all its cards are up. */
  async linkUp(signal: AbortSignal): Promise<void> {
    await this.#ask('PUT', 'vm.link', Type.Unknown(), VERB_MS, signal, { up: true })
  }

  /** @throws VerbRefused; Error: it does not answer, or not what this verb answers; the signal's reason */
  async #ask<T extends TSchema>(
    method: string,
    target: string,
    shape: T,
    ms: number,
    signal: AbortSignal,
    body?: unknown,
  ): Promise<Static<T>> {
    const extra: BunFetchRequestInit & { readonly unix: string; readonly timeout: boolean } = {
      unix: this.#path,
      timeout: false,
    }
    const answer = await fetch(`http://localhost/api/v1/${target}`, {
      ...extra,
      method,
      keepalive: false,
      redirect: 'error',
      headers: { connection: 'close', ...(body !== undefined && { 'content-type': 'application/json' }) },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      signal: AbortSignal.any([signal, AbortSignal.timeout(ms)]),
    })
    return understand(answer.status, await bounded(answer), shape)
  }

  /**
   * A verb whose body is `fd:`, with its files: they travel with the request (SCM_RIGHTS). It takes as long as the
   * signal allows.
   */
  async putFds<T extends TSchema>(
    verb: 'vm.snapshot' | 'vm.fork',
    shape: T,
    fds: readonly number[],
    signal: AbortSignal,
  ): Promise<Static<T>> {
    const { status, body } = await requestWithFds(
      this.#path,
      `/api/v1/${verb}`,
      JSON.stringify({ destination_url: 'fd:' }),
      fds,
      ANSWER_BYTES_MAX,
      signal,
    )
    return understand(status, body, shape)
  }
}

/** Reads the answer of a verb. @throws VerbRefused; Error: it is not what this verb answers */
const understand = <T extends TSchema>(status: number, text: string, shape: T): Static<T> => {
  let said: unknown
  try {
    said = text === '' ? undefined : JSON.parse(text)
  } catch (error) {
    throw new Error('the VMM answers nonsense', { cause: error })
  }
  if (status < 200 || status > 299) {
    if (!Value.Check(Refusal, said)) throw new VerbRefused(status, '', `the VMM refuses with ${status}`)
    throw new VerbRefused(status, said.code, [said.message, ...(said.chain ?? [])].join(': ').slice(0, 1000))
  }
  if (!Value.Check(shape, said)) throw new Error('the VMM answers nonsense')
  return said
}

const bounded = async (answer: Response): Promise<string> => {
  const parts: Uint8Array[] = []
  let bytes = 0
  if (answer.body) {
    for await (const part of answer.body) {
      bytes += part.byteLength
      if (bytes > ANSWER_BYTES_MAX) throw new Error(`the VMM answers more than ${ANSWER_BYTES_MAX} bytes`)
      parts.push(part)
    }
  }
  return Buffer.concat(parts).toString('utf8')
}
