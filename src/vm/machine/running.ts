import type { Host } from '../../host.ts'
import type { Machine } from '../../hypervisor/driver.ts'
import { agentUnavailable } from '../../hypervisor/errors.ts'
import type { Use } from '../../lib/reference.ts'
import type { VmRow } from '../../store/schema.ts'
import { resumeHalted } from './halt.ts'
import type { LiveVm } from './live.ts'
import { vmWrongState } from '../row/errors.ts'
import { find } from '../row/lookup.ts'

/**
 * Finds a running vm whose agent can be spoken to.
 *
 * @throws `vm_not_found`, `vm_ambiguous`, `vm_wrong_state`, `agent_unavailable`
 */
export const running = (
  host: Pick<Host, 'store' | 'vms'>,
  ref: string,
  verb: string,
  use: Use = 'change',
): { readonly row: VmRow; readonly live: LiveVm; readonly machine: Machine } => {
  const row = find(host.store, ref, use)
  if (row.state !== 'running') {
    const reason = row.state === 'paused' ? row.statusMessage : null
    throw vmWrongState({ name: row.name, status: row.state, verb, ...(reason !== null && { reason }) })
  }
  const live = host.vms.live.get(row.uid)
  if (!live?.machine) throw agentUnavailable({ reason: 'its machine is not there' })
  return { row, live, machine: live.machine }
}

/** What finding a running vm takes of the host. */
export type Running = Pick<Host, 'store' | 'vms' | 'ballast' | 'config'>

/**
 * Finds a running vm, as `running` does; a guest that was halted for want of room on the host's disk goes on first,
 * where there is room again.
 *
 * @throws `vm_not_found`, `vm_ambiguous`, `vm_wrong_state`, `agent_unavailable`
 */
export const runningAgain = async (host: Running, ref: string, verb: string, use: Use = 'change') => {
  const live = host.vms.live.get(find(host.store, ref, use).uid)
  if (live?.halts.mayResume()) await resumeHalted(host, live).catch(() => undefined) // then it is paused still, and that is said
  return running(host, ref, verb, use)
}
