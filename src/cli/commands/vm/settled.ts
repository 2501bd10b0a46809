import type { Client } from '../../../client/client.ts'
import { Fault } from '../../../lib/fault.ts'

/** The machine of a workload that has ended powers off: what follows us finds the vm stopped. */
const SETTLED_S = 15

/**
 * Waits until the row of a vm whose workload has ended says so too. The workload's exit code is the answer whatever
 * comes of it.
 */
export const settled = async (client: Client, uid: string): Promise<void> => {
  try {
    await client.call('vm.wait', { params: { name: uid }, query: { for: 'stopped', timeout_s: SETTLED_S } })
  } catch (error) {
    if (!(error instanceof Fault)) throw error
  }
}
