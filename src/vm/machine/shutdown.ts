import type { Vm, VmStop } from '../../contract/vm.ts'
import type { Host } from '../../host.ts'
import type { End, Machine } from '../../hypervisor/driver.ts'
import { sleep } from '../../lib/promise.ts'
import type { VmRow } from '../../store/schema.ts'
import { immediate } from '../../store/store.ts'
import { recordEnd } from './end.ts'
import type { LiveVm } from './live.ts'
import { stopTimeout, vmDeleted, vmWrongState } from '../row/errors.ts'
import { byUid, find } from '../row/lookup.ts'
import { move } from '../row/moves.ts'
import { view } from '../row/view.ts'

/** How long the agent may take to say that it will stop, before the power button is tried. */
const AGENT_MS = 2000

/** What a guest that was asked to stop may need beyond its workload's grace: sync, unmount, power off. */
const POWEROFF_MS = 5000

/** Stops a vm; call it in the vm's queue. @throws as `stop` in `vm/stop.ts` */
/** Stops a vm; call it in the vm's queue. @throws as `stop` in `vm/stop.ts` */
export const shutDown = async (host: Host, uid: string, want: VmStop): Promise<Vm> => {
  const before = find(host.store, uid)
  if (before.state === 'stopped' || before.state === 'crashed') return view(before) // asking twice is asking once
  // one that a daemon before this one began is asked again
  if (before.state === 'standby') return view(forget(host, before))
  const row = before.state === 'stopping' ? before : move(host.store, uid, 'stop')
  host.daemon.step('stopping')
  const live = host.vms.live.get(uid)
  if (!live?.machine) {
    move(host.store, uid, 'exited', {
      boot: { machine: null, stoppedAt: Date.now(), exitMessage: 'the machine was not there any more' },
    })
    return view(find(host.store, uid))
  }
  const graceMs = (want.timeout_s ?? row.spec.policy.stop_timeout_s) * 1000
  if (before.state === 'paused') await live.machine.resume(AbortSignal.timeout(AGENT_MS)).catch(() => undefined)
  const end = await ask(live, live.machine, graceMs)
  if (end === undefined && want.kill === false) {
    move(host.store, uid, 'stayed')
    throw stopTimeout({ name: row.name, seconds: (graceMs + POWEROFF_MS) / 1000 })
  }
  if (end === undefined) await live.machine.kill()
  await recordEnd(host, live, end ?? { reason: 'killed', code: null, message: 'it did not power off in time' })
  return endedView(host, uid, row.name)
}

/** Stops a vm in standby, which has no machine to end: it lets go of its snapshot. */
const forget = (host: Pick<Host, 'daemon' | 'store' | 'snapshots'>, { uid, snapshot }: VmRow): VmRow => {
  const { row, removeFiles } = immediate(host.store, (tx) => ({
    row: move(tx, uid, 'stop', {
      snapshot: null,
      boot: { exitMessage: 'its memory was let go in standby' },
    }),
    removeFiles: host.snapshots.release(tx, snapshot),
  }))
  host.daemon.step('stopping')
  removeFiles()
  return row
}

const endedView = (host: Pick<Host, 'store'>, uid: string, name: string): Vm => {
  const row = byUid(host.store, uid)
  if (!row) throw vmDeleted({ name }) // it was one that deletes itself
  return view(row)
}

/**
 * Asks a guest to end: the agent first, the power button second. Undefined where it is still there when its time is
 * over.
 */
const ask = async (live: LiveVm, machine: Machine, graceMs: number): Promise<End | undefined> => {
  const over = sleep(graceMs + POWEROFF_MS).then(() => undefined)
  try {
    await live.session.request('stop', { grace_ms: graceMs }, AbortSignal.timeout(AGENT_MS))
  } catch {
    await machine.powerButton(AbortSignal.timeout(AGENT_MS)).catch(() => undefined)
  }
  return await Promise.race([machine.ended, over])
}

/** Ends a boot that is under way: it has the vm's queue, and the verb behind it shall get its turn. */
export const cancelBoot = (host: Pick<Host, 'store' | 'vms'>, uid: string, verb: string): void => {
  const row = byUid(host.store, uid)
  if (row?.state === 'starting' || row?.state === 'pending') {
    host.vms.live
      .get(uid)
      ?.cancel.abort(
        verb === 'delete'
          ? vmDeleted({ name: row.name })
          : vmWrongState({ name: row.name, status: 'stopping', verb: 'start' }),
      )
  }
}
