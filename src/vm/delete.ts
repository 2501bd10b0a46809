import type { Host } from '../host.ts'
import { purge } from './machine/purge.ts'
import { cancelBoot } from './machine/shutdown.ts'
import { tearDown } from './machine/teardown.ts'
import { byUid, find } from './row/lookup.ts'
import { move } from './row/moves.ts'

/**
 * Ends a vm at once and deletes all that is its own. Stop it first for a graceful end.
 * Order of effects: `deleting` in the row → machine → files → row. A crash in between is finished at the next start.
 *
 * @throws `vm_not_found`, `vm_ambiguous`
 */
export const remove = async (host: Host, ref: string): Promise<void> => {
  const { uid } = find(host.store, ref)
  cancelBoot(host, uid, 'delete')
  await host.vms.queue.run(uid, async () => {
    const row = byUid(host.store, uid)
    if (!row) return // the create that was cancelled, or an end that came first, has done it
    move(host.store, uid, 'delete')
    host.daemon.step('deleting')
    await tearDown(host, row, host.vms.live.get(uid))
    host.daemon.step('machine-gone')
    await purge(host, uid)
  })
}
