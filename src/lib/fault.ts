import type { Static, TObject, TProperties } from '@sinclair/typebox'
import { messageOf } from './thrown.ts'

/** What the caller can do about it. An edge maps kinds to its own numbers; it never lists codes. */
export type FaultKind =
  | 'invalid'
  | 'unauthorized'
  | 'forbidden'
  | 'not_found'
  | 'conflict'
  | 'exhausted'
  | 'unavailable'
  | 'timeout'
  | 'gateway'
  | 'internal'

/** An error that a caller is expected to read: a stable code, what to do about it, one sentence, one hint. */
export class Fault extends Error {
  override name = 'Fault'
  readonly code: string
  readonly kind: FaultKind
  readonly data: Readonly<Record<string, unknown>>
  readonly hint: string | undefined

  constructor(
    code: string,
    kind: FaultKind,
    message: string,
    data: Readonly<Record<string, unknown>> = {},
    options: { hint?: string | undefined; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.kind = kind
    this.data = data
    this.hint = options.hint
  }
}

/** A fault as data: what a row, a frame or an answer keeps of it. */
export interface FaultRecord {
  readonly code: string
  readonly kind: FaultKind
  readonly message: string
  readonly data?: Readonly<Record<string, unknown>>
  readonly hint?: string | undefined
}

/** Makes again a fault that was declared elsewhere and came here as data. */
export const faultOf = ({ code, kind, message, data, hint }: FaultRecord): Fault =>
  new Fault(code, kind, message, data, { hint })

/** Keeps what a caller may read of a fault; its cause stays behind. */
export const recordOf = ({ code, kind, message, data, hint }: Fault): FaultRecord => ({
  code,
  kind,
  message,
  data,
  ...(hint === undefined ? {} : { hint }),
})

/** Makes a fault of one declaration from its data; the cause goes to the log only. */
export interface FaultMaker<P extends TProperties> {
  (data: Static<TObject<P>>, cause?: unknown): Fault
  readonly code: string
  readonly kind: FaultKind
}

/** Declares one error: its wire code, its kind, the shape of its data, its sentence and its hint. */
export const fault = <P extends TProperties>(
  code: string,
  kind: FaultKind,
  _shape: P,
  say: (data: Static<TObject<P>>) => string,
  hint?: string | ((data: Static<TObject<P>>) => string | undefined),
): FaultMaker<P> =>
  Object.assign(
    (data: Static<TObject<P>>, cause?: unknown) =>
      new Fault(code, kind, say(data), data as Record<string, unknown>, {
        cause,
        hint: typeof hint === 'function' ? hint(data) : hint,
      }),
    { code, kind },
  )

/** Lists the messages of an error and of its causes, outermost first: for the log, never for a caller. */
export const chain = (error: unknown): string[] => {
  const said: string[] = []
  for (
    let at: unknown = error;
    at !== undefined && at !== null && said.length < 16;
    at = at instanceof Error ? at.cause : undefined
  )
    said.push(messageOf(at))
  return said
}
