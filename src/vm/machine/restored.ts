import type { Vm } from '../../contract/vm.ts'
import type { Host } from '../../host.ts'
import type { Machine, Saved } from '../../hypervisor/driver.ts'
import { hypervisorUnavailable } from '../../hypervisor/errors.ts'
import { Fault } from '../../lib/fault.ts'
import type { VmRow } from '../../store/schema.ts'
import { closeSaved } from '../../snapshot/snapshots.ts'
import { immediate } from '../../store/store.ts'
import { listenForAgent } from './agent.ts'
import { machineSpec } from './assemble.ts'
import { watch } from './boot.ts'
import { sendIdentity } from './identity.ts'
import type { LiveVm } from './live.ts'
import { tearDown } from './teardown.ts'
import { admit } from '../row/capacity.ts'
import { vmRestoreFailed } from '../row/errors.ts'
import { byUid, find } from '../row/lookup.ts'
import { change, move } from '../row/moves.ts'
import { view } from '../row/view.ts'

const PAUSE_MS = 10_000

/** The same for who is in the vm's queue already. */
export const restoreSaved = async (host: Host, uid: string): Promise<Vm> => {
  const row = immediate(host.store, (tx) => {
    const before = find(tx, uid)
    if (before.state === 'standby') admit(tx, host.config, before)
    return move(tx, host.events, uid, 'restore', { boot: { identityDue: true } })
  })
  host.step('restoring')
  let woken: Restored
  try {
    if (row.snapshot === null) throw new Error('nothing is saved of it')
    const saved = host.snapshots.open(row.snapshot)
    try {
      woken = await restoreMachine(host, row, saved)
    } finally {
      closeSaved(saved)
    }
  } catch (error) {
    move(host.store, host.events, uid, 'standby', { boot: { machine: null, identityDue: false } })
    throw restoreFault(row, error)
  }
  const removeFiles = immediate(host.store, (tx) => {
    change(tx, uid, { snapshot: null })
    return host.snapshots.release(tx, row.snapshot)
  })
  host.step('saved-let-go')
  removeFiles() // the machine has them open
  await completeRestore(host, row, woken)
  return view(find(host.store, uid))
}

export interface Restored {
  readonly live: LiveVm
  readonly machine: Machine
}

/** A paused machine of what was saved, in the row and watched. What fails is taken back, the row's state is the caller's. */
export const restoreMachine = async (host: Host, row: VmRow, saved: Saved): Promise<Restored> => {
  const driver = host.hypervisors.need(row.hypervisor)
  if (!driver.restore)
    throw hypervisorUnavailable({ hypervisor: row.hypervisor, reason: 'it cannot restore a machine here' })
  let live: LiveVm | undefined
  try {
    live = await listenForAgent(host, row)
    const spec = await machineSpec(host, row, driver)
    host.step('before-machine')
    const machine = await driver.restore(
      spec,
      saved,
      AbortSignal.any([AbortSignal.timeout(host.config.boot_timeout_s * 1000), live.cancel.signal]),
    )
    host.step('machine-started')
    change(host.store, row.uid, { boot: { machine: machine.identity } })
    host.step('machine-recorded')
    watch(host, live, machine)
    return { live, machine }
  } catch (error) {
    const reason: unknown = live?.cancel.signal.aborted ? live.cancel.signal.reason : error
    await tearDown(host, row, live)
    throw reason
  }
}

/**
 * Runs a restored guest and tells its agent who it is; one that does not acknowledge is halted again. The row is the caller's.
 *
 * @throws `agent_unavailable`, `guest_refused`, `vm_restore_failed`
 */
export const resumeRestored = async (host: Host, row: VmRow, { live, machine }: Restored): Promise<void> => {
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
  live.ready.resolve(0)
  live.follow()
}

/** A restored guest of a vm in `paused` runs on; call it in the vm's queue. @throws `agent_unavailable`, `vm_restore_failed` */
export const completeRestore = async (host: Host, row: VmRow, woken: Restored): Promise<void> => {
  try {
    await resumeRestored(host, row, woken)
  } catch (error) {
    if (error instanceof Fault && byUid(host.store, row.uid)?.state === 'paused')
      change(host.store, row.uid, { statusMessage: error.message })
    throw error
  }
  move(host.store, host.events, row.uid, 'resume', { boot: { identityDue: false } })
  host.step('restored')
}

const restoreFault = (row: VmRow, error: unknown): Fault => {
  if (error instanceof Fault && error.kind !== 'internal') return error
  return vmRestoreFailed({ name: row.name, reason: error instanceof Error ? error.message : String(error) }, error)
}
