import type { Vm } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { hypervisorUnable, snapshotFailed } from '../hypervisor/errors.ts'
import { diskExhausted } from '../image/archive.ts'
import { Fault } from '../lib/fault.ts'
import { hasCode } from '../linux/errno.ts'
import type { VmRow } from '../store/schema.ts'
import { abandon } from './boot.ts'
import { vmWrongState } from './errors.ts'
import { hold, letGo } from './hold.ts'
import { places } from './places.ts'
import { find, move, view } from './record.ts'
import { closeSaved, dropSaved, durable, keepSaved, newSaved } from './saved.ts'

/** What saving may take: some time, and a second for this many MiB. */
const SAVE_MS = 30_000
const SAVE_MIB_S = 20

export const saveDeadline = (row: VmRow): AbortSignal =>
  AbortSignal.timeout(SAVE_MS + (row.memoryMb / SAVE_MIB_S) * 1000)

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
    const { folder, overlay } = places(host.config, row)
    const runs = row.state === 'running'
    if (runs) {
      await hold(host, live, machine)
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
        await letGo(live, machine)
        move(host.store, host.events, uid, 'resume')
      }
      throw saveFault(error)
    }
    const asleep = move(host.store, host.events, uid, 'standby', { saved: name, machine: null, stoppedAt: Date.now() })
    host.step('standby-recorded')
    await abandon(host, row, live)
    dropSaved(folder, name)
    return view(asleep)
  })
}

/** What went wrong while a machine was saved. */
export const saveFault = (error: unknown): Fault => {
  if (error instanceof Fault) return error
  if (hasCode(error, 'ENOSPC', 'EDQUOT'))
    return diskExhausted({ reason: 'the memory of the vm does not fit', problem: 'no_space' }, error)
  const reason = error instanceof Error ? error.message : String(error)
  return /No space left|os error 28/.test(reason)
    ? diskExhausted({ reason: 'the memory of the vm does not fit', problem: 'no_space' }, error)
    : snapshotFailed({ reason }, error)
}
