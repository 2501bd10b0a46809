import { guestSilent } from '../../guest/errors.ts'
import type { Host } from '../../host.ts'
import type { End, Machine } from '../../hypervisor/driver.ts'
import { Fault } from '../../lib/fault.ts'
import { orAbort, sleep } from '../../lib/wait.ts'
import type { VmRow } from '../../store/schema.ts'
import { listenForAgent } from './agent.ts'
import { machineSpec } from './assemble.ts'
import { recordEnd } from './end.ts'
import type { LiveVm } from './live.ts'
import { tearDown } from './teardown.ts'
import { vmStartFailed } from '../row/errors.ts'
import { byUid } from '../row/lookup.ts'
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
  void machine.ended
    .then((end) =>
      host.queue.run(live.uid, async () => {
        if (host.live.get(live.uid) !== live) return
        await recordEnd(host, live, end)
        const row = byUid(host.store, live.uid)
        if (row?.state === 'starting') await boot(host, row).catch(() => undefined) // the guest asked for a reboot; what fails is in the row
      }),
    )
    .catch((error: unknown) => {
      host.log.error({ vm: live.name, err: error }, 'cannot finish an ended vm')
    })
}

const sayEnd = (end: End): string =>
  end.message === '' ? `the machine ended (${end.reason})` : `the machine ended (${end.reason}): ${end.message}`

/**
 * Boots a vm whose row says `starting` (moved there with `newBoot`), until its agent is ready. Call it in the vm's queue. What fails is taken back, the row ends in
 * `crashed` with the reason, and the fault says why.
 *
 * @throws `vm_start_failed`, `hypervisor_unavailable`
 */
export const boot = async (host: Host, row: VmRow): Promise<void> => {
  let live: LiveVm | undefined
  try {
    const driver = host.hypervisors.need(row.hypervisor)
    live = await listenForAgent(host, row)
    live.log.restart()
    const timeout = AbortSignal.timeout(host.config.boot_timeout_s * 1000)
    const signal = AbortSignal.any([timeout, live.cancel.signal])
    const spec = await machineSpec(host, row, driver)
    host.step('before-machine')
    const machine = await driver.start(spec, signal)
    host.step('machine-started')
    change(host.store, row.uid, { boot: { machine: machine.identity } })
    host.step('machine-recorded')
    watch(host, live, machine)
    await Promise.race([
      orAbort(live.ready.promise, signal),
      machine.ended.then((end) => {
        throw new Error(sayEnd(end))
      }),
    ])
    host.step('ready')
    expireUnattached(host, live, row)
  } catch (error) {
    const fault = startFault(host, row, live, error)
    await tearDown(host, row, live)
    const now = byUid(host.store, row.uid)
    if (now?.state === 'starting')
      move(host.store, host.events, row.uid, 'broke', {
        statusMessage: fault.message,
        boot: { machine: null, stoppedAt: Date.now() },
      })
    throw fault
  }
}

const startFault = (host: Host, row: VmRow, live: LiveVm | undefined, error: unknown): Fault => {
  if (live?.cancel.signal.aborted && live.cancel.signal.reason instanceof Fault) return live.cancel.signal.reason
  if (error instanceof Fault && error.kind === 'unavailable') return error
  const reason =
    error instanceof DOMException && error.name === 'TimeoutError'
      ? guestSilent({ seconds: host.config.boot_timeout_s }).message
      : error instanceof Error
        ? error.message
        : String(error)
  return vmStartFailed({ name: row.name, reason }, error)
}

/** A held vm that removes itself waits for its caller to attach; one that died before leaves no vm behind. */
export const expireUnattached = (host: Host, live: LiveVm, row: VmRow): void => {
  if (!row.spec.hold || !row.spec.auto_remove) return
  void sleep(UNATTACHED_MS).then(() => {
    if (!live.attached && host.live.get(live.uid) === live) void live.machine?.kill()
  })
}
