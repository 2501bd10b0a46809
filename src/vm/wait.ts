import type { Filled } from '../contract/schema.ts'
import type { Vm, WaitQuery } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import type { VmRow } from '../store/schema.ts'
import { vmEnded, vmNotFound, waitTimeout } from './row/errors.ts'
import { byUid, find } from './row/lookup.ts'
import { view } from './row/view.ts'

type Goal = NonNullable<WaitQuery['for']>

/**
 * Tells whether a vm has got there (true), may yet (false), or never will (a fault). A row that is gone has stopped,
 * and is deleted.
 */
const reached = (row: VmRow, goal: Goal): boolean => {
  const over = row.state === 'stopped' || row.state === 'crashed'
  if (goal === 'ready') {
    if (over || row.state === 'deleting')
      throw vmEnded({ name: row.name, status: row.state, reason: row.statusMessage ?? row.boot.exitMessage ?? '' })
    return row.state === 'running' || row.state === 'paused'
  }
  return goal !== 'deleted' && (over || row.state === 'standby')
}

/**
 * Answers when a vm is ready, or has stopped (`stopped`, `exit`), or is deleted. Woken by the log of events, nobody
 * polls.
 *
 * @throws `wait_timeout`, `vm_ended` (it waits for ready, and the vm has ended)
 */
export const wait = async (
  host: Pick<Host, 'store'>,
  ref: string,
  query: Filled<typeof WaitQuery>,
  client: AbortSignal,
): Promise<Vm> => {
  const goal = query.for
  const seconds = query.timeout_s
  let row = find(host.store, ref, 'read')
  const { uid, name } = row
  const over = AbortSignal.timeout(Math.max(1, seconds * 1000))
  const signal = AbortSignal.any([over, client])
  for (;;) {
    const appended = host.store.events.appended(signal)
    const now = byUid(host.store, uid)
    if (!now) {
      if (goal === 'deleted' || goal === 'stopped' || goal === 'exit') return view(row)
      throw vmNotFound({ name })
    }
    row = now
    if (reached(row, goal)) return view(row)
    if (signal.aborted) throw waitTimeout({ name, for: goal, status: row.state, seconds })
    await appended
  }
}
