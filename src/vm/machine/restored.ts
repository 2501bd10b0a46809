import type { Vm } from '../../contract/vm.ts'
import type { Host } from '../../host.ts'
import type { Saved } from '../../hypervisor/driver.ts'
import { hypervisorUnavailable } from '../../hypervisor/errors.ts'
import { Fault } from '../../lib/fault.ts'
import type { VmRow } from '../../store/schema.ts'
import { closeSaved } from '../../snapshot/snapshots.ts'
import { immediate } from '../../store/store.ts'
import { type Undo, undoing } from '../../lib/undo.ts'
import { type Launched, launchMachine, undoFailed } from './boot.ts'
import { setClock } from './clock.ts'
import { sendIdentity } from './identity.ts'
import { admit } from '../row/capacity.ts'
import { vmRestoreFailed } from '../row/errors.ts'
import { byUid, find } from '../row/lookup.ts'
import { change, move } from '../row/moves.ts'
import { view } from '../row/view.ts'

const PAUSE_MS = 10_000

/** Wakes a vm in standby; call it in the vm's queue. @throws as `restore` in `vm/restore.ts` */
export const restoreSaved = async (host: Host, uid: string): Promise<Vm> => {
  const row = immediate(host.store, (tx) => {
    const before = find(tx, uid)
    if (before.state === 'standby') admit(tx, host.config, before)
    return move(tx, uid, 'restore', { boot: { identityDue: true } })
  })
  host.daemon.step('restoring')
  const launched = await undoing(
    { failed: undoFailed(host, row), reasonOf: (error) => restoreFault(row, error) },
    async (undo) => {
      undo.push('state', () => {
        move(host.store, uid, 'standby', { boot: { machine: null, identityDue: false } })
      })
      if (row.snapshot === null) throw new Error('nothing is saved of it')
      const saved = host.snapshots.open(row.snapshot)
      try {
        return await restoreMachine(host, row, saved, undo)
      } finally {
        closeSaved(saved)
      }
    },
  )
  const removeFiles = immediate(host.store, (tx) => {
    change(tx, uid, { snapshot: null })
    return host.snapshots.release(tx, row.snapshot)
  })
  host.daemon.step('saved-let-go')
  removeFiles() // the machine has them open
  await completeRestore(host, row, launched)
  return view(find(host.store, uid))
}

/** Makes a paused machine of what was saved, in the row and watched. `undo` takes it back, the row's state is the caller's. */
export const restoreMachine = async (host: Host, row: VmRow, saved: Saved, undo: Undo): Promise<Launched> => {
  const driver = host.hypervisors.need(row.hypervisor)
  const restore = driver.restore?.bind(driver)
  if (!restore) throw hypervisorUnavailable({ hypervisor: row.hypervisor, reason: 'it cannot restore a machine here' })
  return await launchMachine(host, row, driver, undo, async (spec, { cancel }) => {
    const timeout = AbortSignal.timeout(host.config.boot_timeout_s * 1000)
    try {
      return await restore(spec, saved, AbortSignal.any([timeout, cancel.signal]))
    } catch (error) {
      throw cancel.signal.aborted ? cancel.signal.reason : error
    }
  })
}

/**
 * Runs a restored guest and tells its agent who it is; one that does not acknowledge is halted again. The row is the caller's.
 *
 * @throws `agent_unavailable`, `guest_refused`, `vm_restore_failed`
 */
export const resumeRestored = async (
  host: Pick<Host, 'config'>,
  row: VmRow,
  { live, machine }: Launched,
): Promise<void> => {
  const signal = AbortSignal.any([AbortSignal.timeout(host.config.boot_timeout_s * 1000), live.cancel.signal])
  try {
    await machine.resume(signal)
    await Promise.race([
      sendIdentity(row, machine, signal),
      machine.ended.then((end) => {
        throw new Error(`the machine ended (${end.reason}) ${end.message}`)
      }),
    ])
  } catch (error) {
    await machine.pause(AbortSignal.timeout(PAUSE_MS)).catch(() => undefined)
    throw error instanceof Fault ? error : restoreFault(row, error)
  }
  void setClock(live) // that of its identity was read before it was delivered, which takes a while on a busy host
  live.ready.resolve(0)
  live.follow()
}

/** Runs the restored guest of a vm in `paused` on; call it in the vm's queue. @throws `agent_unavailable`, `vm_restore_failed` */
export const completeRestore = async (
  host: Pick<Host, 'config' | 'daemon' | 'store'>,
  row: VmRow,
  launched: Launched,
): Promise<void> => {
  try {
    await resumeRestored(host, row, launched)
  } catch (error) {
    if (error instanceof Fault && byUid(host.store, row.uid)?.state === 'paused')
      change(host.store, row.uid, { statusMessage: error.message })
    throw error
  }
  move(host.store, row.uid, 'resume', { boot: { identityDue: false } })
  host.daemon.step('restored')
}

const restoreFault = (row: VmRow, error: unknown): Fault => {
  if (error instanceof Fault && error.kind !== 'internal') return error
  return vmRestoreFailed({ name: row.name, reason: error instanceof Error ? error.message : String(error) }, error)
}
