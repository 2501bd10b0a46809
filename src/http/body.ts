import { OptionalKind, Type } from '@sinclair/typebox'
import type { Operation } from '../contract/operation.ts'
import { fault, Fault } from '../lib/fault.ts'
import { depthOf } from '../lib/json.ts'

/** Of a JSON body. Uploads are streams and have no limit here. */
const BODY_MAX = 2 * 1_048_576
const DEPTH_MAX = 64

const bodyTooLarge = fault(
  'request_invalid',
  'invalid',
  { limit: Type.Integer() },
  (d) => `Cannot read the request: its body is larger than ${d.limit} bytes`,
)
const invalid = (reason: string, cause?: unknown): Fault =>
  new Fault(
    'request_invalid',
    'invalid',
    `Cannot read the request: ${reason}`,
    {},
    { hint: 'The schema stands under /openapi', cause },
  )

/**
 * A request whose body is no stream, with at most `BODY_MAX` of it read and looked at as JSON. The router takes an empty list, null and
 * nothing for an object without fields, drops a field `__proto__`, and its checks recurse as deep as the body goes.
 *
 * @throws `request_invalid`
 */
export const readBody = async (request: Request, operation: Operation): Promise<Request> => {
  if (operation.stream === 'upload' || operation.stream === 'download') return request
  const parts: Uint8Array[] = []
  let size = 0
  if (request.body) {
    for await (const part of request.body as unknown as AsyncIterable<Uint8Array>) {
      size += part.byteLength
      if (size > BODY_MAX) throw bodyTooLarge({ limit: BODY_MAX })
      parts.push(part)
    }
  }
  const body = Buffer.concat(parts)
  if (operation.body && (size > 0 || !(OptionalKind in operation.body))) expectObject(body)
  if (!request.body) return request
  const headers = new Headers(request.headers)
  headers.delete('transfer-encoding')
  if (size > 0 && !headers.has('content-type')) headers.set('content-type', 'application/json')
  return new Request(request.url, {
    method: request.method,
    headers,
    signal: request.signal,
    ...(size > 0 ? { body } : {}),
  })
}

const expectObject = (body: Buffer): void => {
  if (body.byteLength === 0) throw invalid('it has no body')
  if (depthOf(body) > DEPTH_MAX) throw invalid(`its JSON is nested deeper than ${DEPTH_MAX}`)
  let value: unknown
  let proto = false
  try {
    value = JSON.parse(body.toString('utf8'), (key, at: unknown) => {
      proto ||= key === '__proto__'
      return at
    })
  } catch (error) {
    throw invalid('its body is no JSON', error)
  }
  if (proto) throw invalid('__proto__ is no name of a field')
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalid('its body is no JSON object')
}
