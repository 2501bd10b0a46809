import { Type } from '@sinclair/typebox'
import { Fault, fault } from '../lib/fault.ts'
import { messageOf } from '../lib/thrown.ts'
import { plain } from '../lib/plain.ts'

const diskFull = fault('disk_full', 'exhausted', {}, () => 'Cannot write: the disk is full')
const defect = fault(
  'internal',
  'internal',
  { reason: Type.String() },
  (d) => `Cannot go on: ${d.reason}`,
  'This is a defect of aerie; AERIE_DEBUG=1 shows where',
)

/** Writes a failure as a program reads it: the shape of the API's problems, whoever found it. */
export const problemOf = (fault: Fault): Record<string, unknown> => ({
  ...fault.data,
  type: `urn:aerie:fault:${fault.code}`,
  title: fault.message,
  error: fault.message,
  code: fault.code,
  kind: fault.kind,
  ...(fault.hint !== undefined && { hint: fault.hint }),
})

/** Writes a fault for a terminal: its sentence, up to eight details, and its hint, each on a line of its own. */
export const sayFault = (fault: Fault): string => {
  const [first = '', ...more] = fault.message.split('\n')
  const details = Array.isArray(fault.data['errors'])
    ? (fault.data['errors'] as unknown[]).slice(0, 8).flatMap((one) => {
        const { path, message } = (typeof one === 'object' && one !== null ? one : {}) as {
          path?: unknown
          message?: unknown
        }
        return typeof message === 'string'
          ? [`  ${typeof path === 'string' && path !== '' ? `${path}: ` : ''}${message}`]
          : []
      })
    : []
  return [
    `aerie: ${plain(first)}`,
    ...more.map(plain),
    ...details.map(plain),
    ...(fault.hint === undefined ? [] : [`  hint: ${plain(fault.hint)}`]),
  ].join('\n')
}

/**
 * Finds the fault in an error, or makes a defect of it: an error of a clean-up does not hide the one that led there.
 */
export const faultOrDefect = (error: unknown): Fault => {
  if (error instanceof Fault) return error
  if (error instanceof SuppressedError) return faultOrDefect(error.suppressed)
  const code = (error as { code?: unknown } | null)?.code
  const message = messageOf(error)
  if (code === 'ENOSPC' || code === 'EDQUOT') return diskFull({}, error)
  return defect({ reason: message }, error)
}
