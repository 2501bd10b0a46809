import { snapshotFailed } from '../hypervisor/errors.ts'
import { diskExhausted, isDiskFull } from '../lib/errors.ts'
import { Fault } from '../lib/fault.ts'
import { messageOf } from '../lib/thrown.ts'
import type { VmRow } from '../store/schema.ts'

/** Saving may take this long, and a second more for every `SAVE_MIB_S`. */
const SAVE_MS = 30_000

const SAVE_MIB_S = 20

/** ENOSPC and EDQUOT in the words of a machine's program. */
const NO_ROOM = /No space left|os error 28\b|[Qq]uota exceeded|os error 122\b/

/** Aborts when saving the machine of a vm takes too long. */
/** Aborts when saving the machine of a vm takes too long. */
export const saveDeadline = (row: Pick<VmRow, 'memoryMb'>): AbortSignal =>
  AbortSignal.timeout(SAVE_MS + (row.memoryMb / SAVE_MIB_S) * 1000)

/** Turns what went wrong while a machine was saved into a fault. */
export const saveFault = (error: unknown): Fault => {
  if (error instanceof Fault) return error
  const reason = messageOf(error)
  return isDiskFull(error) || NO_ROOM.test(reason)
    ? diskExhausted({ reason: 'the memory of the vm does not fit', problem: 'no_space' }, error)
    : snapshotFailed({ reason }, error)
}
