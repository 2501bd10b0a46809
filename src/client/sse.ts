import { Fault } from '../lib/fault.ts'
import { sleep } from '../lib/promise.ts'
import { answerInvalid, faultOfNetwork, faultOfProblem, kindOfStatus } from './errors.ts'

/** One server-sent event, its fields as they came. */
export interface ServerEvent {
  readonly id: string | undefined
  readonly event: string
  readonly data: string
}

/** One event is one JSON object of ours; what is larger comes from something else. */
const EVENT_CHARS_MAX = 4 * 1024 * 1024

/**
 * Reads `text/event-stream` (WHATWG HTML, section 9.2.6): comments and unknown fields are skipped, a cut last event is
 * dropped.
 */
export async function* parseEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent> {
  const decoder = new TextDecoder()
  let rest = ''
  let id: string | undefined
  let event = ''
  let data: string[] = []
  let size = 0
  for await (const chunk of body) {
    rest += decoder.decode(chunk, { stream: true })
    let start = 0
    for (let end = rest.indexOf('\n'); end >= 0; start = end + 1, end = rest.indexOf('\n', start)) {
      const line = rest.charCodeAt(end - 1) === 13 && end > start ? rest.slice(start, end - 1) : rest.slice(start, end)
      if (line === '') {
        if (data.length > 0) yield { id, event: event === '' ? 'message' : event, data: data.join('\n') }
        event = ''
        data = []
        size = 0
        continue
      }
      const colon = line.indexOf(':')
      const field = colon < 0 ? line : line.slice(0, colon)
      const value = colon < 0 ? '' : line.slice(line.charCodeAt(colon + 1) === 32 ? colon + 2 : colon + 1)
      if (field === 'data') {
        data.push(value)
        size += value.length
      } else if (field === 'event') event = value
      else if (field === 'id' && !value.includes('\0')) id = value
    }
    rest = rest.slice(start)
    if (rest.length + size > EVENT_CHARS_MAX) throw new RangeError('an event is larger than 4 MiB')
  }
}

/** Waits between tries, ms: a daemon that is restarted is back within seconds. */
const BACK_OFF_MS = [50, 200, 500, 1000, 2000, 4000, 8000] as const

/**
 * Reads the events of one stream over as many connections as it takes: a cut connection is made again with
 * `Last-Event-ID`, so nothing is lost or said twice. An `error` event ends it as the fault that it holds.
 */
export async function* follow(
  open: (lastEventId: string | undefined) => Promise<Response>,
  options: { readonly signal?: AbortSignal; readonly lastEventId?: string; readonly endless?: boolean },
  endpoint: string,
): AsyncGenerator<ServerEvent> {
  let last = options.lastEventId
  let said = false
  for (let failures = 0; ; failures++) {
    let cut: unknown
    try {
      const response = await open(last)
      if (!response.body) return
      for await (const event of parseEvents(response.body)) {
        failures = 0
        if (event.id !== undefined) last = event.id
        if (event.event === 'error') throw faultOfError(event.data, endpoint)
        said = true
        yield event
      }
      if (options.endless !== true) return
    } catch (error) {
      if (options.signal?.aborted) return
      const first = last === undefined && failures === 0
      if (error instanceof RangeError) throw answerInvalid({ endpoint, reason: error.message }, error)
      if (error instanceof Fault && (error.kind !== 'unavailable' || first)) throw error
      // Without an id there is no place to go on from: what was said would be said again.
      if (last === undefined && said && options.endless !== true)
        throw error instanceof Fault ? error : faultOfNetwork(error, endpoint)
      cut = error
    }
    const pause = BACK_OFF_MS[failures]
    if (pause === undefined)
      throw cut instanceof Fault
        ? cut
        : faultOfNetwork(cut ?? new Error('it ended the stream again and again'), endpoint)
    if (!(await sleep(pause, options.signal))) return
  }
}

const faultOfError = (data: string, endpoint: string): Fault => {
  try {
    const problem: unknown = JSON.parse(data)
    if (typeof problem === 'object' && problem !== null) {
      const { status } = problem as { status?: unknown }
      return faultOfProblem(
        problem as Record<string, unknown>,
        typeof status === 'number' ? kindOfStatus(status) : 'internal',
      )
    }
  } catch {
    /* said below */
  }
  return answerInvalid({ endpoint, reason: 'its stream ended with an error that is not JSON' })
}
