import { Type } from '@sinclair/typebox'
import { messageOf } from '../lib/thrown.ts'
import { fault, faultOf, type Fault, type FaultKind } from '../lib/fault.ts'

export const daemonUnreachable = fault(
  'daemon_unreachable',
  'unavailable',
  { endpoint: Type.String(), reason: Type.String() },
  (d) => `Cannot reach the daemon at ${d.endpoint}: ${d.reason}`,
  'Start one with "aerie serve", or name another with --host',
)
export const connectionLost = fault(
  'connection_lost',
  'unavailable',
  { endpoint: Type.String(), reason: Type.String() },
  (d) => `Lost the connection to the daemon at ${d.endpoint}: ${d.reason}`,
  'Look whether the daemon still runs: "aerie system info"',
)
export const answerInvalid = fault(
  'answer_invalid',
  'internal',
  { endpoint: Type.String(), reason: Type.String() },
  (d) => `Cannot read the answer of the daemon at ${d.endpoint}: ${d.reason}`,
  'The daemon may have another version: compare with "aerie version"',
)

const KIND_OF_STATUS: Readonly<Record<number, FaultKind>> = {
  400: 'invalid',
  401: 'unauthorized',
  403: 'forbidden',
  404: 'not_found',
  405: 'invalid',
  408: 'timeout',
  409: 'conflict',
  410: 'conflict',
  412: 'conflict',
  413: 'invalid',
  415: 'invalid',
  421: 'forbidden',
  422: 'invalid',
  426: 'invalid',
  429: 'exhausted',
  502: 'gateway',
  503: 'unavailable',
  504: 'timeout',
  507: 'exhausted',
}

/** Tells the kind of a fault by its HTTP status, for an answer that brings no problem of ours. */
export const kindOfStatus = (status: number): FaultKind =>
  KIND_OF_STATUS[status] ?? (status >= 400 && status < 500 ? 'invalid' : 'internal')

/** How much of a failed answer is read: a problem is small, and what answers may not be our daemon. */
const PROBLEM_BYTES_MAX = 1024 * 1024

const readSome = async (response: Response): Promise<string> => {
  const chunks: Uint8Array[] = []
  let size = 0
  for await (const chunk of response.body ?? []) {
    chunks.push(chunk)
    size += chunk.byteLength
    if (size > PROBLEM_BYTES_MAX) break
  }
  return Buffer.concat(chunks).toString('utf8')
}

const text = (value: unknown): string | undefined => (typeof value === 'string' && value !== '' ? value : undefined)

/** Reads a problem object, wherever it came from (an answer, a frame, an event), as the fault that it describes. */
export const faultOfProblem = (problem: Readonly<Record<string, unknown>>, kind: FaultKind): Fault => {
  const { type: _type, title, status: _status, error, message, code, hint, ...data } = problem
  return faultOf({
    code: text(code) ?? 'unknown',
    kind,
    message: text(title) ?? text(error) ?? text(message) ?? 'The daemon refused without a reason',
    data,
    hint: text(hint),
  })
}

/** Reads a problem that stands alone as a fault; undefined where the text is none. */
export const faultOfText = (body: string): Fault | undefined => {
  try {
    const problem: unknown = JSON.parse(body)
    if (typeof problem !== 'object' || problem === null || Array.isArray(problem)) return undefined
    const status = (problem as { status?: unknown }).status
    return faultOfProblem(problem as Record<string, unknown>, kindOfStatus(typeof status === 'number' ? status : 500))
  } catch {
    return undefined
  }
}

/** Reads a failed answer as a fault: its problem+json where there is one, else its status. */
export const faultOfResponse = async (response: Response, endpoint: string): Promise<Fault> => {
  const kind = kindOfStatus(response.status)
  const body = await readSome(response).catch(() => '')
  try {
    const problem: unknown = JSON.parse(body)
    if (typeof problem === 'object' && problem !== null && !Array.isArray(problem))
      return faultOfProblem(problem as Record<string, unknown>, kind)
  } catch {
    /* not JSON: the status speaks */
  }
  return faultOf({
    code: 'unknown',
    kind,
    message: `The daemon at ${endpoint} answered ${response.status} ${response.statusText}`.trimEnd(),
    data: { status: response.status },
  })
}

/**
 * Tells what an error of fetch or of a WebSocket says about the connection; undefined where it is about something else.
 */
export const networkCode = (error: unknown): string | undefined => {
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    const code = (at as { code?: unknown }).code
    if (typeof code === 'string' && /^(E[A-Z]+|Connection\w+|FailedToOpenSocket|UND_\w+)$/.test(code)) return code
  }
  return undefined
}

const REASON: Readonly<Record<string, string>> = {
  ENOENT: 'its socket does not exist',
  ECONNREFUSED: 'nothing listens there',
  ConnectionRefused: 'nothing listens there',
  EACCES: 'this user may not open its socket',
  EPERM: 'this user may not open its socket',
  FailedToOpenSocket: 'its socket cannot be opened',
  ECONNRESET: 'it closed the connection',
  ConnectionClosed: 'it closed the connection',
  EPIPE: 'it closed the connection',
  ETIMEDOUT: 'it did not answer in time',
  ENOTFOUND: 'its host name is unknown',
  EHOSTUNREACH: 'its host cannot be reached',
}
const BEFORE_CONNECTED = new Set([
  'ENOENT',
  'ECONNREFUSED',
  'ConnectionRefused',
  'EACCES',
  'EPERM',
  'FailedToOpenSocket',
  'ENOTFOUND',
  'EHOSTUNREACH',
  'ETIMEDOUT',
])

/** Makes a fault of a network error: `daemon_unreachable` before a connection stood, `connection_lost` after. */
export const faultOfNetwork = (error: unknown, endpoint: string): Fault => {
  const code = networkCode(error)
  const reason = (code === undefined ? undefined : REASON[code]) ?? messageOf(error)
  return (code !== undefined && BEFORE_CONNECTED.has(code) ? daemonUnreachable : connectionLost)(
    { endpoint, reason },
    error,
  )
}

/** Tells whether a connection was cut after it had been made: what was asked may or may not have been done. */
export const isReset = (error: unknown): boolean => {
  const code = networkCode(error)
  return code === 'ECONNRESET' || code === 'ConnectionClosed' || code === 'EPIPE'
}
