import { constants } from 'node:os'
import { sleep } from '../../lib/promise.ts'
import { closeFd } from '../../linux/fd.ts'
import { pidfdSignal } from '../../linux/pidfd.ts'
import type { Launched } from '../../linux/spawn.ts'
import { machineFailed } from '../errors.ts'

/** How long an ended process may take to go. */
const GONE_MS = 10_000

/**
 * Ends the processes of a machine, and lets go of them when they have gone. @throws `machine_failed` where one does not
 * go
 */
export const endProcesses = async (hypervisor: string, processes: readonly Launched[]): Promise<void> => {
  for (const one of processes) pidfdSignal(one.pidfd, constants.signals.SIGKILL)
  const gone = await Promise.race([
    Promise.all(processes.map((one) => one.exited)).then(() => true),
    sleep(GONE_MS).then(() => false),
  ])
  if (!gone) throw machineFailed({ hypervisor, reason: 'a killed process does not go away' })
  for (const one of processes) closeFd(one.pidfd)
}
