import { Type } from '@sinclair/typebox'
import { fault, type Fault } from './fault.ts'
import { sentenceOf } from './sentence.ts'

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

/**
 * The disk of the state folder has no room for what was to be written: the one declaration for everything that writes
 * there.
 */
export const diskExhausted = fault(
  'disk_exhausted',
  'exhausted',
  { reason: Type.String(), problem: Type.String() },
  (d) => sentenceOf('Cannot write to the state folder', d.reason),
  'Free some space in the state folder',
)

/**
 * Tells whether an error says that a disk has no room: the system's own words, SQLite's, or what it makes of a file
 * that it cannot extend.
 */
export const isDiskFull = (error: unknown): boolean => {
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    const code = 'code' in at && typeof at.code === 'string' ? at.code : ''
    if (code === 'ENOSPC' || code === 'EDQUOT' || /^SQLITE_(FULL|IOERR)/.test(code)) return true
    if (/database or disk is full|disk I\/O error/.test(at.message)) return true
  }
  return false
}

/**
 * Makes a fault of an error that nobody declared: a disk that is full is the host's to clear, anything else a defect of
 * ours.
 */
export const unexpected = (error: unknown, what = 'the disk has no room'): Fault =>
  isDiskFull(error) ? diskExhausted({ reason: what, problem: 'no_space' }, error) : internalError({}, error)
