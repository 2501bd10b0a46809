import { rmSync } from 'node:fs'
import { eq } from 'drizzle-orm'
import type { MachineHost } from '../host.ts'
import { endMarked } from '../linux/marked.ts'
import { type VmRow, vms } from '../store/schema.ts'
import { isDiskFull } from '../lib/errors.ts'

import { purge } from './machine/purge.ts'
import { cancelBoot } from './machine/shutdown.ts'
import { tearDown } from './machine/teardown.ts'
import { pathsOf } from './row/layout.ts'
import { byUid, findAny, whyDamaged } from './row/lookup.ts'
import { move } from './row/moves.ts'

/**
 * Writes that a vm goes. A disk so full that not even this can be written gets its room from the vm itself: what is
 * deleted here would be deleted in a moment, and where the daemon does not live to write it down it finds a vm whose
 * machine has gone.
 */
const beginDelete = async (host: MachineHost, row: VmRow): Promise<void> => {
  try {
    move(host.store, row.uid, 'delete')
  } catch (error) {
    if (!isDiskFull(error)) throw error
    await tearDown(host, row, host.vms.live.get(row.uid))
    rmSync(pathsOf(host.config, row).folder, { recursive: true, force: true })
    move(host.store, row.uid, 'delete')
  }
}

/** Ends what runs of a vm whose record does not say what that is, and writes that it goes, whatever its state was. */
const endDamaged = async (host: MachineHost, row: VmRow): Promise<void> => {
  host.store.update(vms).set({ state: 'deleting' }).where(eq(vms.uid, row.uid)).run()
  await endMarked(`${host.daemon.stateId}/${row.uid}`)
}

/**
 * Ends a vm at once and deletes all that is its own. Stop it first for a graceful end.
 * Order of effects: `deleting` in the row → machine → files → row. A crash in between is finished at the next start.
 *
 * @throws `vm_not_found`, `vm_ambiguous`
 */
export const remove = async (host: MachineHost, ref: string): Promise<void> => {
  const { uid } = findAny(host.store, ref)
  cancelBoot(host, uid, 'delete')
  await host.vms.queue.run(uid, async () => {
    const row = byUid(host.store, uid)
    if (!row) return // the create that was cancelled, or an end that came first, has done it
    if (whyDamaged(row) === undefined) await beginDelete(host, row)
    else await endDamaged(host, row)
    host.daemon.step('deleting')
    await tearDown(host, row, host.vms.live.get(uid))
    host.daemon.step('machine-gone')
    await purge(host, uid)
  })
}
