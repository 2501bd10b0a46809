import { guestSilent } from '../../guest/errors.ts'
import type { Host } from '../../host.ts'
import type { End, HypervisorDriver, Machine, MachineSpec, Saved } from '../../hypervisor/driver.ts'
import { hypervisorUnavailable } from '../../hypervisor/errors.ts'
import { diskExhausted, isDiskFull } from '../../lib/errors.ts'
import { Fault } from '../../lib/fault.ts'
import { orAbort, sleep } from '../../lib/promise.ts'
import type { VmRow } from '../../store/schema.ts'
import { listenForAgent } from './agent.ts'
import { type Undo, undoing } from '../../lib/undo.ts'
import { assemble } from './assemble.ts'
import { recordEnd } from './end.ts'
import { watchHalts } from './halt.ts'
import type { LiveVm } from './live.ts'
import { reboot } from './reboot.ts'
import { closeLive, removeRuntimeFolder } from './teardown.ts'
import { vmStartFailed } from '../row/errors.ts'
import { byUid } from '../row/lookup.ts'
import { messageOf } from '../../lib/thrown.ts'
import { change, move } from '../row/moves.ts'

/** A held vm whose caller never attaches is deleted after this long, if it is one that deletes itself. */
const UNATTACHED_MS = 60_000

/*
 * One boot, in the order of its effects. Whatever is cut short by a crash is found again by the sweep (`vm/adopt.ts`):
 *
 *   runtime folder → session socket → cgroups → processes (marked in their environment) → `machine` in the row → ready
 *
 * A process that was started and not yet written to the row is found by its mark.
 */

/** Watches for the end of a machine: the row learns of it in the vm's queue, unless a verb was faster. */
export const watch = (host: Host, live: LiveVm, machine: Machine): void => {
  live.machine = machine
  watchHalts(host, live, machine)
  void machine.ended
    .then((end) =>
      host.vms.queue.run(live.uid, async () => {
        if (host.vms.live.get(live.uid) !== live) return
        const ranMs = Date.now() - (byUid(host.store, live.uid)?.boot.startedAt ?? Date.now())
        await recordEnd(host, live, end)
        const row = byUid(host.store, live.uid)
        if (row?.state === 'starting') await reboot(host, row, ranMs, (again) => boot(host, again)) // the guest asked for it
      }),
    )
    .catch((error: unknown) => {
      host.log.error({ vm: live.name, err: error }, 'cannot finish an ended vm')
    })
}

const sayEnd = (end: End): string =>
  end.message === '' ? `the machine ended (${end.reason})` : `the machine ended (${end.reason}): ${end.message}`

/** Says in the log what of a vm could not be taken back. */
export const undoFailed =
  (host: Pick<Host, 'log'>, row: VmRow) =>
  (step: string, error: unknown): void => {
    host.log.error({ vm: row.name, step, err: error }, 'cannot take back a step')
  }

/** A machine that a driver has made, with what the daemon holds of it. */
export interface Launched {
  readonly live: LiveVm
  readonly machine: Machine
  /** Aborted when the boot has taken too long, or is cancelled. */
  readonly deadline: AbortSignal
}

/**
 * Makes a machine out of its assembled parts, one that boots or a paused one of what was saved (`from`), writes it down
 * and watches it. `undo` hears how each step is taken back: the machine is killed, its parts are unmade, the session
 * closes, its folder goes. The state of the row is the caller's.
 *
 * @throws `hypervisor_unavailable`, `machine_failed`; where the boot is cancelled, the reason
 */
export const launchMachine = async (host: Host, row: VmRow, undo: Undo, from?: Saved): Promise<Launched> => {
  const driver = host.hypervisors.need(row.hypervisor)
  if (from && !driver.restore)
    throw hypervisorUnavailable({ hypervisor: row.hypervisor, reason: 'it cannot restore a machine here' })
  const timeout = AbortSignal.timeout(host.config.boot_timeout_s * 1000)
  undo.push('runtime folder', () => {
    removeRuntimeFolder(host, row)
  })
  const live = await listenForAgent(host, row)
  undo.push('session', () => {
    closeLive(host, live)
  })
  if (!from) live.log.restart()
  const deadline = AbortSignal.any([timeout, live.cancel.signal])
  const spec = await assemble(host, row, driver, undo)
  host.daemon.step('before-machine')
  const machine = await startMachine(driver, spec, from, { deadline, cancelled: live.cancel.signal })
  undo.push('machine', async () => {
    if (host.vms.live.get(live.uid) === live) host.vms.live.delete(live.uid) // its end is ours, and no event of the vm
    await machine.kill()
  })
  host.daemon.step('machine-started')
  change(host.store, row.uid, { boot: { machine: machine.identity } })
  host.daemon.step('machine-recorded')
  watch(host, live, machine)
  return { live, machine, deadline }
}

/** Asks the driver for a machine; what a restore that was cancelled fails with is why. */
const startMachine = async (
  driver: HypervisorDriver,
  spec: MachineSpec,
  from: Saved | undefined,
  { deadline, cancelled }: { readonly deadline: AbortSignal; readonly cancelled: AbortSignal },
): Promise<Machine> => {
  if (!from || !driver.restore) return await driver.start(spec, deadline)
  try {
    return await driver.restore(spec, from, deadline)
  } catch (error) {
    throw cancelled.aborted ? cancelled.reason : error
  }
}

/**
 * Boots a vm whose row says `starting` (moved there with a `newBoot`), until its agent is ready. Call it in the vm's
 * queue. What fails is taken back, the row ends in `crashed` with the reason, and the fault says why.
 *
 * @throws `vm_start_failed`, `hypervisor_unavailable`
 */
export const boot = async (host: Host, row: VmRow): Promise<void> => {
  const cancelled = () => host.vms.live.get(row.uid)?.cancel.signal
  const reasonOf = (error: unknown) => startFault(host, row, cancelled(), error)
  await undoing({ failed: undoFailed(host, row), reasonOf }, async (undo) => {
    undo.push('state', (reason) => {
      recordFailedBoot(host, row.uid, reason)
    })
    const { live, machine, deadline } = await launchMachine(host, row, undo)
    await Promise.race([
      orAbort(live.ready.promise, deadline),
      machine.ended.then((end) => {
        throw new Error(sayEnd(end))
      }),
    ])
    host.daemon.step('ready')
    expireUnattached(host, live, row)
  })
}

/** Writes down that a boot has failed; a vm that was deleted or moved on meanwhile is left as it is. */
const recordFailedBoot = (host: Pick<Host, 'store'>, uid: string, reason: unknown): void => {
  if (byUid(host.store, uid)?.state !== 'starting') return
  move(host.store, uid, 'broke', {
    statusMessage: messageOf(reason),
    boot: { machine: null, stoppedAt: Date.now() },
  })
}

/** Makes what a boot that failed throws: why it was cancelled, where it was. */
const startFault = (
  host: Pick<Host, 'config'>,
  row: VmRow,
  cancelled: AbortSignal | undefined,
  error: unknown,
): Fault => {
  if (cancelled?.aborted && cancelled.reason instanceof Fault) return cancelled.reason
  if (error instanceof Fault && error.kind === 'unavailable') return error
  if (isDiskFull(error))
    return diskExhausted({ reason: 'the machine of the vm does not fit', problem: 'no_space' }, error)
  const reason =
    error instanceof DOMException && error.name === 'TimeoutError'
      ? guestSilent({ seconds: host.config.boot_timeout_s }).message
      : error instanceof Error
        ? error.message
        : String(error)
  return vmStartFailed({ name: row.name, reason }, error)
}

/** Deletes a held vm that removes itself if its caller does not attach: one that died before leaves no vm behind. */
export const expireUnattached = (host: Pick<Host, 'vms'>, live: LiveVm, row: VmRow): void => {
  if (!row.spec.workload.hold || !row.spec.policy.auto_remove) return
  void sleep(UNATTACHED_MS).then(() => {
    if (!live.attached && host.vms.live.get(live.uid) === live) void live.machine?.kill()
  })
}
