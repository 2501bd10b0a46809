import { rmSync } from 'node:fs'
import { eq } from 'drizzle-orm'
import type { Host } from '../host.ts'
import { idempotency, vms } from '../store/schema.ts'
import { immediate } from '../store/store.ts'
import { places } from './places.ts'
import { byUid } from './record.ts'
import { release } from './release.ts'

/** Removes the files of a vm without a machine, then its row: a crash in between is finished at the next start. */
export const erase = async (host: Host, uid: string): Promise<void> => {
  const row = byUid(host.store, uid)
  if (!row) return
  await release(host, row)
  host.step('before-files-removed')
  rmSync(places(host.config, row).folder, { recursive: true, force: true })
  host.step('files-removed')
  immediate(host.store, (tx) => {
    tx.delete(vms).where(eq(vms.uid, uid)).run()
    tx.delete(idempotency).where(eq(idempotency.vmUid, uid)).run()
    host.events.append(tx, { type: 'VM_DELETED', name: row.name, uid, status: 'deleted', ip: row.ip, mac: row.mac, message: row.statusMessage ?? '' })
  })
}
