import { eq } from 'drizzle-orm'
import type { VmSpec } from '../../contract/vm-spec.ts'
import type { Vm, VmStart } from '../../contract/vm.ts'
import type { Host } from '../../host.ts'
import { vms } from '../../store/schema.ts'
import { immediate } from '../../store/store.ts'
import { boot } from './boot.ts'
import { fits } from './configuration.ts'
import { admit } from '../row/capacity.ts'
import { byUid, find } from '../row/lookup.ts'
import { move } from '../row/moves.ts'
import { view } from '../row/view.ts'

/** Boots a stopped or crashed vm, with what the request says of its workload; call it in the vm's queue. */
export const powerOn = async (host: Host, uid: string, want: VmStart): Promise<Vm> => {
  const removeSnapshot = immediate(host.store, (tx) => {
    const row = find(tx, uid)
    if (row.state === 'stopped' || row.state === 'crashed') {
      const kernel =
        row.spec.compute.kernel === undefined
          ? host.kernels.byDigest(row.kernelDigest)
          : host.kernels.resolve(row.spec.compute.kernel)
      const spec: VmSpec = { ...row.spec, workload: { ...row.spec.workload, ...want, hold: false } }
      fits(host, { ...row, spec }, host.images.byDigest(row.imageDigest).config)
      admit(tx, host.config, row)
      tx.update(vms).set({ spec, kernelDigest: kernel.digest }).where(eq(vms.uid, uid)).run()
    }
    move(tx, uid, 'start', { newBoot: {}, quickReboots: 0 })
    return host.snapshots.release(tx, row.snapshot)
  })
  host.daemon.step('starting')
  removeSnapshot()
  const row = byUid(host.store, uid)
  if (row) await boot(host, row)
  return view(find(host.store, uid))
}
