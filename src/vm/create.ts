import { fill } from '../contract/schema.ts'
import { specOf, VmCreate, type VmSpec } from '../contract/vm-spec.ts'
import type { Vm } from '../contract/vm.ts'
import type { Host, MachineHost } from '../host.ts'
import type { Claim, Made } from '../store/idempotency.ts'
import type { VmRow } from '../store/schema.ts'
import { immediate } from '../store/store.ts'
import { boot, undoFailed } from './machine/boot.ts'
import { argvOf, fits } from './machine/configuration.ts'
import { undoing } from '../lib/undo.ts'
import { takeBack, viewMade } from './machine/creation.ts'
import { diskFault, makeFolder } from './machine/vm-folder.ts'
import { defaultCard, ensureDefault, giveCards, needsTap, planCards } from './row/cards.ts'
import { admit } from './row/capacity.ts'
import { workloadMissing } from './row/errors.ts'
import { pathsOf } from './row/layout.ts'
import { byUid } from './row/lookup.ts'
import { move } from './row/moves.ts'
import { insert } from './row/reserve.ts'
import { view } from './row/view.ts'
import { type HeldPort, letGo, recordPorts, sayPublished } from '../network/ports.ts'
import type { Store } from '../store/store.ts'
import { holdPublished } from './row/published.ts'
import { writeTemplate } from '../volume/template.ts'

/**
 * Creates a vm and answers when its agent is ready. Order of effects, each undone by `undo` (or at the next start of
 * the daemon):
 *
 *   row (name, CID, MAC, capacity: one transaction) → folder, disk, logs → `starting` → boot (`vm/machine/boot.ts`)
 *
 * A create that fails before `running` leaves no row: its reason is in the answer and in the event `VM_CREATE_FAILED`.
 *
 * @throws `vm_exists`, `image_not_found`, `kernel_not_found`, `capacity_exhausted`, `hypervisor_unavailable`,
 * `vm_start_failed`
 */
export const create = async (host: Host, want: VmCreate, claim?: Claim): Promise<Vm> => {
  const { row, held } = await reserve(host, want, claim)
  host.daemon.step('row-inserted')
  return await host.vms.queue.run(row.uid, () =>
    undoing({ failed: undoFailed(host, row) }, async (undo) => {
      undo.push('vm', (reason) => takeBack(host, row, reason))
      await host.networks.publish(row.uid, held)
      host.daemon.step('published')
      prepare(host, row)
      move(host.store, row.uid, 'prepared', { newBoot: {} })
      host.daemon.step('prepared')
      await boot(host, row)
      return viewMade(host, row)
    }),
  )
}

/** Answers a create that comes again with what the first one made; undefined where that is gone. */
export const createdBefore = (host: Pick<Host, 'store'>, [made]: readonly Made[]): Vm | undefined => {
  const row = made && byUid(host.store, made.uid)
  return row && view(row)
}

/** A vm that is to be, and the ports of the host that it holds. */
interface Reserved {
  readonly row: VmRow
  readonly held: readonly HeldPort[]
}

/** The row of a new vm, with its key. */
const reserve = async (host: MachineHost, want: VmCreate, claim: Claim | undefined): Promise<Reserved> => {
  const { name, ...fields } = fill(VmCreate, want)
  const spec = specOf({ ...fields, network: fields.network ?? (await defaultCard(host)) })
  await ensureDefault(host, spec)
  const cards = planCards(host, spec)
  const hypervisor = spec.compute.hypervisor ?? host.hypervisors.nameFor(nicOf(spec))
  host.hypervisors.need(hypervisor)
  const held = holdPublished(host, spec, cards)
  const work = (tx: Store): VmRow => {
    const image = host.images.resolve(spec.storage.image, tx)
    const kernel = host.kernels.resolve(spec.compute.kernel)
    if (spec.workload.hold && argvOf(spec.workload, image.config).length === 0)
      throw workloadMissing({ image: spec.storage.image })
    admit(tx, host.config, { cpuCores: spec.compute.cpu_cores, memoryMb: spec.compute.memory_mb })
    const row = insert(tx, name, {
      spec: { ...spec, publish: sayPublished(held) },
      runtime: spec.policy.runtime ?? spec.policy.plugin ?? 'vm',
      plugin: spec.policy.plugin ?? null,
      hypervisor,
      imageDigest: image.digest,
      kernelDigest: kernel.digest,
      cpuCores: spec.compute.cpu_cores,
      memoryMb: spec.compute.memory_mb,
    })
    const whole = giveCards(tx, row, cards)
    recordPorts(tx, row.uid, held)
    fits(host, whole, image.config)
    claim?.(tx, [whole])
    return whole
  }
  try {
    return { row: immediate(host.store, work), held }
  } catch (error) {
    letGo(held)
    throw error
  }
}

/** Tells the kind of network card that the vm's network asks for. */
const nicOf = ({ network }: VmSpec) => (network.mode === 'user' ? network.mode : needsTap(network) ? 'tap' : undefined)

const prepare = (host: Pick<Host, 'config' | 'daemon'>, row: VmRow): void => {
  makeFolder(host, row)
  try {
    writeTemplate(pathsOf(host.config, row).overlay, row.spec.storage.disk_mb)
  } catch (error) {
    throw diskFault(error)
  }
  host.daemon.step('disk-made')
}
