import { createHash } from 'node:crypto'
import { eq, sql } from 'drizzle-orm'
import { fill } from '../contract/schema.ts'
import { specOf, VmCreate, type VmSpec } from '../contract/vm-spec.ts'
import type { Vm } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { requestInvalid } from '../lib/errors.ts'
import { faultOf } from '../lib/fault.ts'
import { type VmRow, idempotency } from '../store/schema.ts'
import { boot } from './machine/boot.ts'
import { argvOf, fits } from './machine/configuration.ts'
import { createOrUndo } from './machine/creation.ts'
import { diskFault, makeFolder } from './machine/folder.ts'
import { admit } from './row/capacity.ts'
import { idempotencyConflict, workloadMissing } from './row/errors.ts'
import { pathsOf } from './row/layout.ts'
import { byUid } from './row/lookup.ts'
import { move } from './row/moves.ts'
import { insert, reserving } from './row/reserve.ts'
import { view } from './row/view.ts'
import { writeTemplate } from '../volume/template.ts'

/** Answers to a create with an Idempotency-Key are kept this long. */
const KEY_MS = 24 * 3_600_000

const KEY_MAX = 255

/**
 * Creates a vm and answers when its agent is ready. Order of effects, each undone by `undo` (or at the next start of the daemon):
 *
 *   row (name, CID, MAC, capacity: one transaction) → folder, disk, logs → `starting` → boot (`vm/machine/boot.ts`)
 *
 * A create that fails before `running` leaves no row: its reason is in the answer and in the event `VM_CREATE_FAILED`.
 *
 * @throws `vm_exists`, `image_not_found`, `kernel_not_found`, `capacity_exhausted`, `hypervisor_unavailable`, `vm_start_failed`, `idempotency_conflict`
 */
export const create = (host: Host, want: VmCreate, key: string | undefined): Promise<Vm> => {
  if (key === undefined) return createOnce(host, want, undefined)
  if (key === '' || key.length > KEY_MAX)
    return Promise.reject(
      requestInvalid({
        field: 'Idempotency-Key',
        reason: `it has ${key.length} characters, 1 to ${KEY_MAX} are allowed`,
      }),
    )
  const hash = createHash('sha256').update(JSON.stringify(want)).digest('hex')
  const earlier = host.store.select().from(idempotency).where(eq(idempotency.key, key)).get()
  if (earlier && Date.now() - earlier.at < KEY_MS) {
    if (earlier.requestHash !== hash) return Promise.reject(idempotencyConflict({ key }))
    const running = host.creating.get(key) as Promise<Vm> | undefined
    if (running) return running
    if (earlier.fault) return Promise.reject(faultOf(earlier.fault))
    const row = byUid(host.store, earlier.vmUid)
    if (row) return Promise.resolve(view(row))
  }
  const creating = createOnce(host, want, { key, hash }).finally(() => {
    host.creating.delete(key)
  })
  host.creating.set(key, creating)
  creating.catch(() => undefined) // the caller may have gone; the fault is kept under its key
  return creating
}

interface Key {
  readonly key: string
  readonly hash: string
}

const createOnce = async (host: Host, want: VmCreate, key: Key | undefined): Promise<Vm> => {
  const row = reserve(host, want, key)
  host.daemon.step('row-inserted')
  return await host.vms.queue.run(row.uid, () =>
    createOrUndo(host, row, async () => {
      prepare(host, row)
      move(host.store, row.uid, 'prepared', { newBoot: {} })
      host.daemon.step('prepared')
      await boot(host, row)
    }),
  )
}

/** Reserves the row of a new vm, with its key. */
const reserve = (host: Host, want: VmCreate, key: Key | undefined): VmRow => {
  const { name, ...fields } = fill(VmCreate, want)
  const spec = specOf(fields)
  const hypervisor = spec.compute.hypervisor ?? host.hypervisors.nameFor(nicOf(spec))
  host.hypervisors.need(hypervisor)
  return reserving(host, [name], (tx, [identity]) => {
    if (!identity) throw new Error('no identity for a vm')
    const image = host.images.resolve(spec.storage.image, tx)
    const kernel = host.kernels.resolve(spec.compute.kernel)
    if (spec.workload.hold && argvOf(spec.workload, image.config).length === 0)
      throw workloadMissing({ image: spec.storage.image })
    fits({ name: identity.name, machineId: identity.machineId, spec }, image.config)
    admit(tx, host.config, { cpuCores: spec.compute.cpu_cores, memoryMb: spec.compute.memory_mb })
    const row = insert(host, tx, identity, {
      spec,
      runtime: spec.policy.runtime ?? spec.policy.plugin ?? 'vm',
      plugin: spec.policy.plugin ?? null,
      hypervisor,
      imageDigest: image.digest,
      kernelDigest: kernel.digest,
      cpuCores: spec.compute.cpu_cores,
      memoryMb: spec.compute.memory_mb,
    })
    if (key) {
      const now = Date.now()
      tx.insert(idempotency)
        .values({ key: key.key, requestHash: key.hash, vmUid: row.uid, at: now })
        .onConflictDoUpdate({
          target: idempotency.key,
          set: { requestHash: key.hash, vmUid: row.uid, at: now, fault: null },
        })
        .run()
      tx.delete(idempotency)
        .where(sql`${idempotency.at} < ${now - KEY_MS}`)
        .run()
    }
    return row
  })
}

/** Tells the kind of network card that the vm's network asks for. */
const nicOf = (spec: VmSpec) => (spec.network.mode === 'user' ? spec.network.mode : undefined)

const prepare = (host: Pick<Host, 'config' | 'daemon'>, row: VmRow): void => {
  makeFolder(host, row)
  try {
    writeTemplate(pathsOf(host.config, row).overlay, row.spec.storage.disk_mb)
  } catch (error) {
    throw diskFault(error)
  }
  host.daemon.step('disk-made')
}
