import { VM_NAME_MAX } from '../contract/vm-spec.ts'
import type { Vm, VmFork, VmForks } from '../contract/vm.ts'
import type { Host } from '../host.ts'
import { requestInvalid } from '../lib/errors.ts'
import { Fault } from '../lib/fault.ts'
import { type Undo, undoing } from '../lib/undo.ts'
import { deferred } from '../lib/promise.ts'
import { closeSaved, durable } from '../snapshot/snapshots.ts'
import type { Claim, Made } from '../store/idempotency.ts'
import type { VmRow } from '../store/schema.ts'
import { immediate } from '../store/store.ts'
import { boot, launchMachine, undoFailed } from './machine/boot.ts'
import { takeBack, viewMade } from './machine/creation.ts'
import { type Target, type Template, takeTemplate } from './machine/fork-template.ts'
import { resumeRestored } from './machine/restored.ts'
import { cardsOfClone, giveCards, planCards } from './row/cards.ts'
import { admit } from './row/capacity.ts'
import { vmDeleted, vmWrongState } from './row/errors.ts'
import { pathsOf } from './row/layout.ts'
import { byUid, find } from './row/lookup.ts'
import { move } from './row/moves.ts'
import { insert } from './row/reserve.ts'
import { view } from './row/view.ts'

/**
 * Clones a vm. Order of effects:
 *
 *   rows of all clones, `pending`, with names, CIDs and capacity (one transaction) → the source is frozen, saved, its disk cloned for each,
 *   and goes on (`vm/machine/fork-template.ts`) → each clone by itself, side by side: `starting` → a machine of what was saved → its agent acknowledges who it
 *   is → `running`; or `standby`, or `stopped`
 *
 * A clone that fails, or that a crash cuts short before it is told of, leaves nothing behind; the source goes on in any
 * case.
 *
 * @throws `vm_wrong_state`, `vm_exists`, `capacity_exhausted`, `hypervisor_unable`, `snapshot_failed`, `disk_exhausted`, `machine_silent`; where no clone came
 *   to be, the reason of the first
 */
export const fork = async (host: Host, ref: string, want: VmFork, claim?: Claim): Promise<VmForks> => {
  const source = find(host.store, ref, 'read')
  const target = targetOf(source, want)
  const rows = reserve(host, source.uid, want, target, claim)
  const template = deferred<Template>()
  host.daemon.step('clones-reserved')
  const clones = rows.map((row) => host.vms.queue.run(row.uid, () => makeClone(host, row, template.promise)))
  const settled = Promise.allSettled(clones) // heard from the first on: a template that fails rejects them all
  try {
    const made = await host.vms.queue.run(source.uid, () => takeTemplate(host, source.uid, rows, target))
    host.daemon.step('template-taken')
    template.resolve(made)
    try {
      return answer(rows, await settled)
    } finally {
      if (made.saved) closeSaved(made.saved)
    }
  } catch (error) {
    template.reject(error)
    await settled
    throw error
  }
}

/** Tells what a clone shall be: what its source is, where the request does not say. @throws `vm_wrong_state` */
const targetOf = (source: VmRow, want: VmFork): Target => {
  switch (source.state) {
    case 'running':
    case 'paused':
      return want.target_state ?? 'running'
    case 'standby':
      return want.target_state ?? 'standby'
    case 'stopped':
    case 'crashed':
      if (want.target_state === 'standby') break
      return want.target_state ?? 'stopped'
    default:
  }
  throw vmWrongState({ name: source.name, status: source.state, verb: 'fork' })
}

const reserve = (
  host: Pick<Host, 'config' | 'log' | 'networks' | 'store'>,
  uid: string,
  want: VmFork,
  target: Target,
  claim: Claim | undefined,
): VmRow[] => {
  const { name, count = 1 } = want
  const names = Array.from({ length: count }, (_, index) =>
    name === undefined || count === 1 ? name : `${name}-${index + 1}`,
  )
  const long = names.find((one) => one !== undefined && one.length > VM_NAME_MAX)
  if (long !== undefined)
    throw requestInvalid({ field: 'name', reason: `"${long}" has more than ${VM_NAME_MAX} characters` })
  return immediate(host.store, (tx) => {
    const source = find(tx, uid)
    targetOf(source, want) // it may have moved meanwhile
    const rows = names.map((one) => {
      if (target === 'running') admit(tx, host.config, source)
      const { runtime, plugin, hypervisor, imageDigest, kernelDigest, cpuCores, memoryMb } = source
      const { workload, policy, ...rest } = source.spec
      const metadata = want.metadata ?? policy.metadata
      const spec = {
        ...rest,
        publish: [],
        ...cardsOfClone(rest),
        workload: { ...workload, hold: false },
        policy: { ...policy, metadata },
      }
      const row = insert(tx, one, {
        spec,
        runtime,
        plugin,
        hypervisor,
        imageDigest,
        kernelDigest,
        cpuCores,
        memoryMb,
        forkedFrom: uid,
      })
      return giveCards(tx, row, planCards(host, spec))
    })
    claim?.(tx, rows)
    return rows
  })
}

/** Answers a fork that comes again with the clones that are left of the first one; undefined where none is. */
export const forkedBefore = (host: Pick<Host, 'store'>, made: readonly Made[]): VmForks | undefined => {
  const vms: Vm[] = []
  const failed: VmForks['failed'] = []
  for (const { uid, name } of made) {
    const row = byUid(host.store, uid)
    if (row) vms.push(view(row))
    else failed.push({ name, ...problemOf(vmDeleted({ name })) })
  }
  return vms.length === 0 ? undefined : { vms, failed }
}

const answer = (rows: readonly VmRow[], settled: readonly PromiseSettledResult<Vm>[]): VmForks => {
  const made: Vm[] = []
  const failed: VmForks['failed'] = []
  for (const [index, one] of settled.entries()) {
    if (one.status === 'fulfilled') made.push(one.value)
    else failed.push({ name: rows[index]?.name ?? '', ...problemOf(one.reason) })
  }
  const first = settled.find((one) => one.status === 'rejected')
  if (made.length === 0 && first) throw first.reason
  return { vms: made, failed }
}

const problemOf = (error: unknown): { code: string; message: string } =>
  error instanceof Fault
    ? { code: error.code, message: error.message }
    : { code: 'internal', message: 'Cannot complete the request' }

/** Makes one clone, in its own queue, from its row to what it shall be. */
const makeClone = (host: Host, row: VmRow, coming: Promise<Template>): Promise<Vm> =>
  undoing({ failed: undoFailed(host, row) }, async (undo) => {
    undo.push('vm', (reason) => takeBack(host, row, reason))
    const template = await coming
    await durable(pathsOf(host.config, row).overlay)
    await finishClone(host, row, template, undo)
    return viewMade(host, row)
  })

/** Moves a clone whose disk is there to what it shall be. */
const finishClone = async (host: Host, row: VmRow, { target, session, saved }: Template, undo: Undo): Promise<void> => {
  if (target === 'stopped') {
    move(host.store, row.uid, 'cloned', { wasReady: true, boot: { stoppedAt: Date.now() } })
    return
  }
  if (target === 'standby') {
    move(host.store, row.uid, 'saved', { wasReady: true, boot: { ...session, stoppedAt: Date.now() } })
    return
  }
  const starting = move(host.store, row.uid, 'prepared', {
    newBoot: { ...session, identityDue: saved !== undefined },
  })
  host.daemon.step('prepared')
  if (saved === undefined) {
    await boot(host, starting)
    return
  }
  await resumeRestored(host, starting, await launchMachine(host, starting, undo, saved))
  move(host.store, row.uid, 'ready', {
    wasReady: true,
    boot: { identityDue: false, bootMs: Date.now() - (starting.boot.startedAt ?? Date.now()) },
  })
  host.daemon.step('ready')
}
