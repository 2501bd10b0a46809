import type { Vm } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { hypervisorUnable } from '../hypervisor/errors.ts'
import { undoing } from '../lib/undo.ts'
import { undoFailed } from './machine/boot.ts'
import { closeSaved, durable } from '../snapshot/snapshots.ts'
import { immediate } from '../store/store.ts'
import { saveFault } from '../snapshot/saving.ts'
import { freeze, unfreeze } from './machine/freeze.ts'
import { saving } from './machine/save.ts'
import { tearDown } from './machine/teardown.ts'
import { vmWrongState } from './row/errors.ts'
import { pathsOf } from './row/layout.ts'
import { byUid, find } from './row/lookup.ts'
import { move } from './row/moves.ts'
import { view } from './row/view.ts'

/**
 * Moves the memory of a vm to disk and ends its machine. Order of effects:
 *
 *   disks written out, processors halted → `paused` → memory, state and disk have reached the host's disk → `standby` refers to
 *   the snapshot → machine, sockets and cgroups go
 *
 * What fails or is cut short before the row says `standby` leaves a vm that runs, or is paused, as it was.
 *
 * @throws `vm_wrong_state`, `hypervisor_unable`, `snapshot_failed`, `disk_exhausted`, `machine_silent`
 */
export const standby = async (host: Host, ref: string): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.vms.queue.run(uid, async () => {
    const row = find(host.store, uid)
    const live = host.vms.live.get(uid)
    const machine = live?.machine
    if ((row.state !== 'running' && row.state !== 'paused') || !machine)
      throw vmWrongState({ name: row.name, status: row.state, verb: 'standby' })
    if (!machine.snapshot || !host.hypervisors.get(row.hypervisor)?.restore)
      throw hypervisorUnable({ hypervisor: row.hypervisor, verb: 'standby' })
    const id = await undoing({ failed: undoFailed(host, row), reasonOf: saveFault }, async (undo) => {
      if (row.state === 'running') {
        await freeze(host, live, machine, 'standby')
        undo.push('pause', async () => {
          await unfreeze(host, live, machine, 'resume', 'running')
          if (byUid(host.store, uid)?.state === 'paused') move(host.store, uid, 'resume')
        })
        host.daemon.step('held')
        move(host.store, uid, 'pause')
      }
      const made = host.snapshots.create()
      undo.push('files', () => {
        host.snapshots.discard(made.id)
      })
      try {
        await saving(row, machine, 'standby', async (deadline) => await machine.snapshot?.(made, deadline))
      } finally {
        closeSaved(made)
      }
      await durable(pathsOf(host.config, row).overlay)
      await host.snapshots.keep(made.id)
      host.daemon.step('saved')
      return made.id
    })
    const asleep = immediate(host.store, (tx) => {
      host.snapshots.record(tx, id, uid)
      return move(tx, uid, 'standby', { snapshot: id, boot: { machine: null, stoppedAt: Date.now() } })
    })
    host.daemon.step('standby-recorded')
    await tearDown(host, row, live)
    return view(asleep)
  })
}
