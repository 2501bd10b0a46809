import { randomBytes } from 'node:crypto'
import { converse } from '../../guest/conversation.ts'
import type { Machine } from '../../hypervisor/driver.ts'
import { Fault } from '../../lib/fault.ts'
import { sleep } from '../../lib/promise.ts'
import type { VmRow } from '../../store/schema.ts'
import type { GuestHost } from './part.ts'
import { identityNics } from './nics.ts'

/** Time between two tries: a restored guest resets its connections first, and may take ours for one of them. */
const AGAIN_MS = 50

/**
 * Tells the agent of a restored guest who it is now: name, machine-id, clock, 32 bytes of entropy, network. Resolves
 * when all of it is applied; nothing in the guest may be reached before.
 *
 * @throws `agent_unavailable`: it did not acknowledge before the signal; `guest_refused`: it could not apply it
 */
export const sendIdentity = async (
  host: GuestHost,
  row: VmRow,
  machine: Machine,
  signal: AbortSignal,
): Promise<void> => {
  for (;;) {
    try {
      const { conversation } = await converse(
        machine,
        'identity',
        {
          hostname: row.name,
          machine_id: row.machineId,
          entropy: randomBytes(32).toString('hex'),
          time_ns: Date.now() * 1_000_000,
          ...identityNics(host, row),
        },
        signal,
      )
      conversation.close()
      return
    } catch (error) {
      if (!(error instanceof Fault) || error.code !== 'agent_unavailable' || !(await sleep(AGAIN_MS, signal)))
        throw error
    }
  }
}
