import { Type } from '@sinclair/typebox'
import { fault } from './fault.ts'

/** What a caller said cannot be read or does not fit: the one declaration for every edge and every noun. */
export const requestInvalid = fault(
  'request_invalid',
  'invalid',
  {
    /** Names the one field that is wrong, where there is one. */
    field: Type.Optional(Type.String()),
    reason: Type.String(),
    /** Bytes that would have been taken, where the request is too large. */
    limit: Type.Optional(Type.Integer()),
    errors: Type.Optional(Type.Array(Type.Object({ path: Type.String(), message: Type.String() }))),
  },
  (d) => `Cannot read the request: ${d.field === undefined ? '' : `${d.field}: `}${d.reason}`,
  (d) =>
    d.limit === undefined
      ? 'The schema stands under /openapi'
      : 'Give a long argument or environment as a file: `aerie cp` carries any size',
)

/** A defect of the daemon. Its cause goes to the log and never to the caller. */
export const internalError = fault(
  'internal',
  'internal',
  {},
  () => 'Cannot complete the request',
  'The reason stands in the log of the daemon',
)
