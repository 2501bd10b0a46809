import { Type } from '@sinclair/typebox'
import { requestInvalid } from '../lib/errors.ts'
import { fault, type Fault } from '../lib/fault.ts'

export const guestPathNotFound = fault(
  'guest_path_not_found',
  'not_found',
  { path: Type.String(), reason: Type.String() },
  (d) => `Cannot find "${d.path}" in the guest: ${d.reason}`,
)
export const guestUserNotFound = fault(
  'guest_user_not_found',
  'invalid',
  { reason: Type.String() },
  (d) => `Cannot use this user in the guest: ${d.reason}`,
)
export const guestRefused = fault(
  'guest_refused',
  'conflict',
  { reason: Type.String(), agent_code: Type.String() },
  (d) => `The agent in the guest refused: ${d.reason}`,
)
/** Refuses a request that is larger than an agent takes. */
export const requestTooLarge = ({ limit }: { readonly limit: number }, cause?: unknown): Fault =>
  requestInvalid({ limit, reason: `what the guest is told of it is larger than ${limit} bytes` }, cause)
export const guestBusy = fault(
  'guest_busy',
  'exhausted',
  { reason: Type.String() },
  (d) => `The guest is busy: ${d.reason}`,
  'End some of them, or wait until they have ended: the guest itself is well',
)
export const guestSilent = fault(
  'guest_silent',
  'timeout',
  { seconds: Type.Number() },
  (d) => `The guest did not say that it is ready within ${d.seconds} s`,
  'Look at `aerie logs --source console`; a slow host may need a larger boot_timeout_s',
)
