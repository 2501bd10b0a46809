import { rmSync } from 'node:fs'
import { eq, sql } from 'drizzle-orm'
import { vmEvents } from '../../contract/vm.ts'
import type { MachineHost } from '../../host.ts'
import { forgetPorts } from '../../network/ports.ts'
import { release } from '../../network/leases.ts'
import { type PortRow, vms } from '../../store/schema.ts'
import { immediate, prepared } from '../../store/store.ts'
import { removeRuntime } from './teardown.ts'
import { pathsOf } from '../row/layout.ts'
import { byUid } from '../row/lookup.ts'

const deleteVm = prepared((store) =>
  store
    .delete(vms)
    .where(eq(vms.uid, sql.placeholder('uid')))
    .prepare(),
)
/** Removes the files of a vm without a machine, then its row: a crash in between is finished at the next start. */
export const purge = async (host: MachineHost, uid: string): Promise<void> => {
  const row = byUid(host.store, uid)
  if (!row) return
  await removeRuntime(host, row)
  host.daemon.step('before-files-removed')
  rmSync(pathsOf(host.config, row).folder, { recursive: true, force: true })
  host.daemon.step('files-removed')
  const home = host.networks.homeOf(uid)
  const gone: PortRow[] = []
  const removeSnapshot = immediate(host.store, (tx) => {
    gone.push(...forgetPorts(tx, uid))
    release(tx, uid)
    deleteVm(tx).run({ uid })
    host.store.events.append(tx, vmEvents, {
      type: 'VM_DELETED',
      name: row.name,
      uid,
      message: row.statusMessage ?? '',
      data: { status: 'deleted', ip_address: row.ip, mac_address: row.mac },
    })
    return host.snapshots.release(tx, row.snapshot)
  })
  removeSnapshot()
  await host.networks.unpublish(home, gone)
}
