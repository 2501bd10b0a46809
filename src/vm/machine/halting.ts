import type { Host } from '../../host.ts'
import type { Machine } from '../../hypervisor/driver.ts'
import { sleep } from '../../lib/promise.ts'
import { machineSilent } from '../row/errors.ts'
import { byUid } from '../row/lookup.ts'
import { move } from '../row/moves.ts'
import { setClock } from './clock.ts'
import type { LiveVm } from './live.ts'

/*
 * A VMM that waits for a slow disk may answer late, or do late what it was asked to. So a verb that failed asks what
 * the machine does, and where nobody answers the question is asked again until somebody does: no guest stays halted
 * while its row says that it runs.
 */

export type HaltingHost = Pick<Host, 'log' | 'store' | 'vms'>

/** How long a machine may take to halt or to go on. */
const VERB_MS = 10_000
/** How long it may take to say what it does. */
const STATE_MS = 5000
/** The time between two attempts, ms, to reconcile a machine that does not answer, at first and at most. */
const RECONCILE_MS = 200
const RECONCILE_MS_MAX = 30_000

/** What the row of a machine is taken for: `running` also where a verb wrote `paused` and took it back. */
export type Wanted = 'as its row says' | 'running'

/** What a machine does; undefined where it does not say. */
export const stateOf = (machine: Machine): Promise<'running' | 'paused' | 'ended' | undefined> =>
  machine.state(AbortSignal.timeout(STATE_MS)).catch(() => undefined)

/** Halts a machine. One that does not is kept running. @throws `machine_silent` */
export const haltMachine = async (host: HaltingHost, live: LiveVm, machine: Machine, verb: string): Promise<void> => {
  try {
    await machine.pause(AbortSignal.timeout(VERB_MS))
  } catch (error) {
    const state = await stateOf(machine)
    if (state === 'paused') return // it came late
    if (state !== 'ended') reconcileLater(host, live, machine, 'as its row says')
    throw machineSilent({ name: live.name, verb }, error)
  }
}

/**
 * Runs a halted machine on, and sets its guest's clock. One that does not go on now does so later. @throws
 * `machine_silent`
 */
export const runMachine = async (
  host: HaltingHost,
  live: LiveVm,
  machine: Machine,
  verb: string,
  wanted: Wanted = 'as its row says',
): Promise<void> => {
  try {
    await machine.resume(AbortSignal.timeout(VERB_MS))
  } catch (error) {
    if ((await stateOf(machine)) !== 'running') {
      reconcileLater(host, live, machine, wanted)
      throw machineSilent({ name: live.name, verb }, error)
    }
  }
  await setClock(live)
}

const reconcileLater = (host: HaltingHost, live: LiveVm, machine: Machine, wanted: Wanted): void => {
  if (live.isReconciling) return
  live.isReconciling = true
  void reconcile(host, live, machine, wanted)
    .catch((error: unknown) => {
      host.log.error({ vm: live.name, err: error }, 'cannot mend a machine that did not answer')
    })
    .finally(() => {
      live.isReconciling = false
    })
}

const reconcile = async (host: HaltingHost, live: LiveVm, machine: Machine, wanted: Wanted): Promise<void> => {
  for (let wait = RECONCILE_MS; await sleep(wait, live.closed); wait = Math.min(wait * 2, RECONCILE_MS_MAX)) {
    const done = await host.vms.queue.run(live.uid, () => agree(host, live, machine, wanted))
    if (!done) continue
    host.log.warn({ vm: live.name }, 'a machine that did not answer in time answers again')
    return
  }
}

/** Makes machine and row agree; false while the machine does not answer. Call it in the vm's queue. */
const agree = async (host: HaltingHost, live: LiveVm, machine: Machine, wanted: Wanted): Promise<boolean> => {
  const state = await stateOf(machine)
  const row = byUid(host.store, live.uid)
  if (!row || host.vms.live.get(live.uid) !== live || state === 'ended') return true
  if (state === undefined) return false
  const runs = row.state === 'running' || (wanted === 'running' && row.state === 'paused')
  if (runs && state === 'paused') {
    try {
      await machine.resume(AbortSignal.timeout(STATE_MS))
    } catch {
      return false
    }
    await setClock(live)
  }
  if (row.state !== 'paused') return true
  if (!row.boot.identityDue) {
    if (runs || state === 'running') move(host.store, live.uid, 'resume')
    return true
  }
  // A guest that was restored and does not know yet who it is must not run.
  if (state === 'paused') return true
  try {
    await machine.pause(AbortSignal.timeout(STATE_MS))
    return true
  } catch {
    return false
  }
}
