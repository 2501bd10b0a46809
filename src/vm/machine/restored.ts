import { statSync } from 'node:fs'
import type { Vm } from '../../contract/vm.ts'
import type { Host, MachineHost } from '../../host.ts'
import { diskExhausted, isDiskFull } from '../../lib/errors.ts'
import { Fault } from '../../lib/fault.ts'
import type { VmRow } from '../../store/schema.ts'
import { closeSaved } from '../../snapshot/snapshots.ts'
import { immediate } from '../../store/store.ts'
import { undoing } from '../../lib/undo.ts'
import { type Launched, launchMachine, undoFailed } from './boot.ts'
import { setClock } from './clock.ts'
import { type HaltingHost, haltMachine } from './halting.ts'
import { hasTaps } from '../row/cards.ts'
import { sendIdentity } from './identity.ts'
import { admit } from '../row/capacity.ts'
import type { LiveVm } from './live.ts'
import { tearDown } from './teardown.ts'
import { vmRestoreFailed } from '../row/errors.ts'
import { pathsOf } from '../row/layout.ts'
import { byUid, find } from '../row/lookup.ts'
import { change, move } from '../row/moves.ts'
import { messageOf } from '../../lib/thrown.ts'
import { view } from '../row/view.ts'

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
        return await launchMachine(host, row, undo, saved)
      } finally {
        closeSaved(saved)
      }
    },
  )
  const before = changedAt(host, row)
  try {
    await completeRestore(host, row, launched)
  } catch (error) {
    await takeBack(host, row, launched.live, before, error)
    throw error
  }
  return view(find(host.store, uid))
}

/**
 * Tells when the disk of a vm was written last. Its memory is of use as long as that is the moment at which it was
 * saved.
 */
const changedAt = (host: Pick<Host, 'config'>, row: VmRow): number =>
  statSync(pathsOf(host.config, row).overlay).mtimeMs

/** Tells whether a vm's disk is still what it was when its memory was saved, as far as files can tell. */
export const isAsSaved = (host: Pick<Host, 'config' | 'snapshots'>, row: VmRow): boolean => {
  if (row.snapshot === null) return false
  try {
    return changedAt(host, row) <= host.snapshots.writtenAt(row.snapshot)
  } catch {
    return false
  }
}

/**
 * Makes the best of a guest that does not stand. Where it has written nothing it sleeps again as if it had never been
 * woken; else its disk has gone on without what was saved, which is of no use then, and the halted machine is kept:
 * `resume` tries again.
 */
const takeBack = async (host: MachineHost, row: VmRow, live: LiveVm, before: number, error: unknown): Promise<void> => {
  if (byUid(host.store, row.uid)?.state !== 'paused') return
  if (changedAt(host, row) === before) {
    await tearDown(host, row, live)
    move(host.store, row.uid, 'standby', {
      ...(error instanceof Fault && { statusMessage: error.message }),
      boot: { machine: null, identityDue: false },
    })
    return
  }
  const removeFiles = immediate(host.store, (tx) => {
    change(tx, row.uid, { snapshot: null })
    return host.snapshots.release(tx, row.snapshot)
  })
  removeFiles()
}

/**
 * Runs a restored guest and tells its agent who it is; one that does not acknowledge is halted again. The row is the
 * caller's.
 *
 * @throws `agent_unavailable`, `guest_refused`, `vm_restore_failed`
 */
export const resumeRestored = async (
  host: Pick<Host, 'config' | 'networks'> & HaltingHost,
  row: VmRow,
  { live, machine }: Pick<Launched, 'live' | 'machine'>,
): Promise<void> => {
  const signal = AbortSignal.any([AbortSignal.timeout(host.config.boot_timeout_s * 1000), live.cancel.signal])
  try {
    await machine.resume(signal)
    await Promise.race([
      sendIdentity(host, row, machine, signal),
      machine.ended.then((end) => {
        throw new Error(`the machine ended (${end.reason}) ${end.message}`)
      }),
    ])
    if (hasTaps(row)) await machine.linkUp?.(signal)
  } catch (error) {
    await haltMachine(host, live, machine, 'restore').catch(() => undefined) // what does not halt now does later
    throw error instanceof Fault ? error : restoreFault(row, error)
  }
  void setClock(live) // that of its identity was read before it was delivered, which takes a while on a busy host
  live.ready.resolve(0)
  live.follow()
}

/**
 * Runs the restored guest of a vm in `paused` on, and lets go of what was saved once it stands; call it in the vm's
 * queue. @throws `agent_unavailable`, `vm_restore_failed`
 */
export const completeRestore = async (
  host: Pick<Host, 'config' | 'daemon' | 'networks' | 'snapshots'> & HaltingHost,
  row: VmRow,
  launched: Pick<Launched, 'live' | 'machine'>,
): Promise<void> => {
  try {
    await resumeRestored(host, row, launched)
  } catch (error) {
    if (error instanceof Fault && byUid(host.store, row.uid)?.state === 'paused')
      change(host.store, row.uid, { statusMessage: error.message })
    throw error
  }
  const removeFiles = immediate(host.store, (tx) => {
    move(tx, row.uid, 'resume', { snapshot: null, boot: { identityDue: false } })
    return host.snapshots.release(tx, row.snapshot)
  })
  host.daemon.step('saved-let-go')
  removeFiles() // the machine has them open
  host.daemon.step('restored')
}

const restoreFault = (row: VmRow, error: unknown): Fault => {
  if (error instanceof Fault && error.kind !== 'internal') return error
  if (isDiskFull(error))
    return diskExhausted({ reason: 'the machine of the vm does not fit', problem: 'no_space' }, error)
  return vmRestoreFailed({ name: row.name, reason: messageOf(error) }, error)
}
