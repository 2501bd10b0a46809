import { ValidationError } from 'elysia'
import { chain, fault, Fault, type FaultKind } from '../lib/fault.ts'
import type { Log } from '../lib/log.ts'

/** The one place where an error becomes an HTTP status. */
const STATUS = {
  invalid: 400,
  unauthorized: 401,
  forbidden: 403,
  not_found: 404,
  conflict: 409,
  internal: 500,
  unavailable: 503,
  timeout: 504,
  exhausted: 507,
} as const satisfies Record<FaultKind, number>

export const routeNotFound = fault(
  'route_not_found',
  'not_found',
  {},
  () => 'Cannot find this route',
  'The routes stand under /openapi',
)

/** Says which field is wrong and how; at most eight of them. */
const invalid = (error: ValidationError): Fault => {
  const errors = error.all
    .slice(0, 8)
    .map((one) => {
      const at = one as { path?: string; message?: string; summary?: string }
      return {
        path: (at.path ?? '').slice(1).replaceAll('/', '.'),
        message: at.message ?? at.summary ?? 'is not valid',
      }
    })
    .filter((one, index, all) => all.findIndex((other) => other.path === one.path) === index)
  const said = errors.map((one) => (one.path === '' ? one.message : `${one.path}: ${one.message}`)).join('; ')
  return new Fault(
    'request_invalid',
    'invalid',
    `Cannot read the request: ${said || 'it does not fit its schema'}`,
    { errors },
    { hint: 'The schema stands under /openapi', cause: error },
  )
}

export const asFault = (cause: unknown, code?: unknown): Fault => {
  if (cause instanceof Fault) return cause
  if (cause instanceof ValidationError && cause.type !== 'response') return invalid(cause)
  if (code === 'PARSE')
    return new Fault('request_invalid', 'invalid', 'Cannot read the request: its body is no JSON', {}, { cause })
  if (code === 'NOT_FOUND') return routeNotFound({})
  return new Fault(
    'internal',
    'internal',
    'Cannot complete the request',
    {},
    { hint: 'The reason stands in the log of the daemon', cause },
  )
}

/** RFC 9457, with Volant's `error`. The cause goes to the log only: it may name paths and values of this host. */
export const problem = (fault: Fault, requestId: string, log: Log): Response => {
  const status = STATUS[fault.kind]
  if (status >= 500) log.warn({ requestId, code: fault.code, reasons: chain(fault) }, 'request failed')
  return new Response(
    JSON.stringify({
      ...fault.data,
      type: `urn:aerie:fault:${fault.code}`,
      title: fault.message,
      status,
      error: fault.message,
      code: fault.code,
      ...(fault.hint === undefined ? {} : { hint: fault.hint }),
      request_id: requestId,
    }),
    {
      status,
      headers: {
        'content-type': 'application/problem+json',
        'x-request-id': requestId,
        ...(status === 401 ? { 'www-authenticate': 'Bearer realm="aerie"' } : {}),
        ...(status === 503 ? { 'retry-after': '1' } : {}),
      },
    },
  )
}
