import type { Machine } from '../../hypervisor/driver.ts'
import { type HaltingHost, haltMachine, runMachine, type Wanted } from './halting.ts'
import { messageOf } from '../../lib/thrown.ts'
import type { LiveVm } from './live.ts'

/** How long the agent may take to write the guest's disks out; a guest without an agent is frozen all the same. */
const QUIESCE_MS = 10_000
const VERB_MS = 10_000

/**
 * Freezes a running guest for a moment: the agent writes out its disks and freezes them, then the processors halt. What
 * is on the disks now is whole by itself, not with the memory alone.
 *
 * @throws `machine_silent`
 */
export const freeze = async (host: HaltingHost, live: LiveVm, machine: Machine, verb: string): Promise<void> => {
  try {
    await live.session.request('quiesce', {}, AbortSignal.timeout(QUIESCE_MS))
  } catch (error) {
    host.log.warn({ vm: live.name, reason: messageOf(error) }, 'the guest does not write out its disks')
  }
  try {
    await haltMachine(host, live, machine, verb)
  } catch (error) {
    thaw(live)
    throw error
  }
}

/** Lets a frozen guest go on. @throws `machine_silent` */
export const unfreeze = async (
  host: HaltingHost,
  live: LiveVm,
  machine: Machine,
  verb: string,
  wanted?: Wanted,
): Promise<void> => {
  await runMachine(host, live, machine, verb, wanted)
  thaw(live)
}

/** Asks the agent to thaw the guest's disks. Nobody waits for it: disks that nobody thaws thaw by themselves. */
export const thaw = (live: LiveVm): void => {
  void live.session.request('thaw', {}, AbortSignal.timeout(VERB_MS)).catch(() => undefined)
}
