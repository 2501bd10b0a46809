import { unexpected } from '../lib/errors.ts'
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
  gateway: 502,
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

/** Finds the fault in an error. What nobody declared is a full disk, or a defect, which says nothing of its reason. */
export const faultOrInternal = (cause: unknown): Fault => (cause instanceof Fault ? cause : unexpected(cause))

/** Writes a fault as RFC 9457 has it, with Volant's `error`. */
export const problemOf = (fault: Fault) => ({
  ...fault.data,
  type: `urn:aerie:fault:${fault.code}`,
  title: fault.message,
  status: STATUS[fault.kind],
  error: fault.message,
  code: fault.code,
  ...(fault.hint === undefined ? {} : { hint: fault.hint }),
})

/** Answers a request with its fault. The cause goes to the log only: it may name paths and values of this host. */
export const problem = (fault: Fault, requestId: string, log: Log): Response => {
  const status = STATUS[fault.kind]
  if (status >= 500) log.warn({ requestId, code: fault.code, reasons: chain(fault) }, 'request failed')
  return new Response(JSON.stringify({ ...problemOf(fault), request_id: requestId }), {
    status,
    headers: {
      'content-type': 'application/problem+json',
      'x-request-id': requestId,
      ...(status === 401 ? { 'www-authenticate': 'Bearer realm="aerie"' } : {}),
      ...(status === 503 ? { 'retry-after': '1' } : {}),
    },
  })
}
