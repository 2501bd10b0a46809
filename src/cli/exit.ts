import type { FaultKind } from '../lib/fault.ts'

/** The one place where an error becomes an exit code. */
export const EXIT = {
  invalid: 2,
  unauthorized: 3,
  forbidden: 3,
  not_found: 4,
  conflict: 5,
  exhausted: 6,
  unavailable: 7,
  gateway: 7,
  timeout: 8,
  internal: 70,
} as const satisfies Record<FaultKind, number>

/**
 * What a command that runs a guest's command ends with when the fault is aerie's own: the guest's own codes stay free.
 */
export const EXIT_OURS = 125
/** The exit code of a command whose time was over, as that of timeout(1). */
export const EXIT_TIMEOUT = 124
export const EXIT_INTERRUPTED = 130
/** The exit code where nobody reads our output, as that of a program which SIGPIPE ended. */
export const EXIT_PIPE = 141
