import { eq } from 'drizzle-orm'
import type { Vm, VmStart } from '../contract/vm.ts'
import type { VmSpec } from '../contract/vm-spec.ts'
import type { Host } from '../host.ts'
import { vms } from '../store/schema.ts'
import { immediate } from '../store/store.ts'
import { boot } from './boot.ts'
import { admit } from './capacity.ts'
import { fits } from './configuration.ts'
import { byUid, find, move, newBoot, view } from './record.ts'
import { restoreNow } from './restore.ts'

/**
 * Starts a stopped or crashed vm; what the request says of the workload replaces what was. A vm in standby runs on from where it stood.
 *
 * @throws `vm_wrong_state`, `capacity_exhausted`, `vm_restore_failed`, `vm_start_failed` (the row stays, `crashed`, with the reason)
 */
export const start = async (host: Host, ref: string, want: VmStart): Promise<Vm> => {
  const { uid } = find(host.store, ref)
  return await host.queue.run(uid, async () =>
    find(host.store, uid).state === 'standby' && Object.keys(want).length === 0
      ? await restoreNow(host, uid)
      : await startNow(host, uid, want),
  )
}

/** The same for who is in the vm's queue already. */
export const startNow = async (host: Host, uid: string, want: VmStart): Promise<Vm> => {
  immediate(host.store, (tx) => {
    const row = find(tx, uid)
    if (row.state === 'stopped' || row.state === 'crashed') {
      const kernel =
        row.spec.kernel === undefined ? host.kernels.byDigest(row.kernelDigest) : host.kernels.resolve(row.spec.kernel)
      const spec: VmSpec = { ...row.spec, ...want, hold: false }
      fits({ ...row, spec }, host.images.byDigest(row.imageDigest).config)
      admit(tx, host.config, row)
      tx.update(vms).set({ spec, kernelDigest: kernel.digest }).where(eq(vms.uid, uid)).run()
    }
    move(tx, host.events, uid, 'start', newBoot())
  })
  host.step('starting')
  const row = byUid(host.store, uid)
  if (row) await boot(host, row)
  return view(find(host.store, uid))
}
