import type { Vm } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { hypervisorUnable } from '../hypervisor/errors.ts'
import { closeSaved, dropSaved, durable, keepSaved, newSaved } from '../snapshot/saved-files.ts'
import { saveDeadline, saveFault } from '../snapshot/saving.ts'
import { freeze, unfreeze } from './machine/freeze.ts'
import { tearDown } from './machine/teardown.ts'
import { vmWrongState } from './row/errors.ts'
import { pathsOf } from './row/layout.ts'
import { find } from './row/lookup.ts'
import { move } from './row/moves.ts'
import { view } from './row/view.ts'

/**
 * Moves the memory of a vm to disk and ends its machine. Order of effects:
 *
 *   disks written out, processors halted → `paused` → memory, state and disk have reached the host's disk → `standby` names them in the
 *   row → machine, sockets and cgroups go
 *
 * What fails or is cut short before the row says `standby` leaves a vm that runs, or is paused, as it was.
 *
 * @throws `vm_wrong_state`, `hypervisor_unable`, `snapshot_failed`, `disk_exhausted`
 */
export const standby = async (host: Host, ref: string): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.queue.run(uid, async () => {
    const row = find(host.store, uid)
    const live = host.live.get(uid)
    const machine = live?.machine
    if ((row.state !== 'running' && row.state !== 'paused') || !machine)
      throw vmWrongState({ name: row.name, status: row.state, verb: 'standby' })
    if (!machine.snapshot || !host.hypervisors.get(row.hypervisor)?.restore)
      throw hypervisorUnable({ hypervisor: row.hypervisor, verb: 'standby' })
    const { folder, overlay } = pathsOf(host.config, row)
    const runs = row.state === 'running'
    if (runs) {
      await freeze(host, live, machine)
      host.step('held')
      move(host.store, host.events, uid, 'pause')
    }
    let name: string
    try {
      const made = newSaved(folder)
      name = made.name
      try {
        await machine.snapshot(made, saveDeadline(row))
      } finally {
        closeSaved(made)
      }
      await durable(overlay)
      await keepSaved(folder, name)
      host.step('saved')
    } catch (error) {
      dropSaved(folder, null)
      if (runs) {
        await unfreeze(live, machine)
        move(host.store, host.events, uid, 'resume')
      }
      throw saveFault(error)
    }
    const asleep = move(host.store, host.events, uid, 'standby', { saved: name, machine: null, stoppedAt: Date.now() })
    host.step('standby-recorded')
    await tearDown(host, row, live)
    dropSaved(folder, name)
    return view(asleep)
  })
}
