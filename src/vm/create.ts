import { createHash } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { eq, sql } from 'drizzle-orm'
import { Value } from '@sinclair/typebox/value'
import type { Vm } from '../contract/vm.ts'
import { VmCreate, type VmSpec } from '../contract/vm-spec.ts'
import type { Host } from '../host.ts'
import { diskExhausted, requestInvalid } from '../image/archive.ts'
import { Fault, type FaultKind } from '../lib/fault.ts'
import { hasCode } from '../linux/errno.ts'
import { writeTemplate } from '../volume/template.ts'
import { idempotency, type VmRow } from '../store/schema.ts'
import { immediate } from '../store/store.ts'
import { boot } from './boot.ts'
import { admit } from './capacity.ts'
import { argvOf, fits } from './configuration.ts'
import { idempotencyConflict, workloadMissing } from './errors.ts'
import { erase } from './erase.ts'
import { places } from './places.ts'
import { lastLines } from './console-log.ts'
import { byUid, move, newBoot, view } from './record.ts'
import { insert, reserving } from './reserve.ts'

/** Answers to a create with an Idempotency-Key are kept this long. */
const KEY_MS = 24 * 3_600_000
const KEY_MAX = 255

/**
 * Creates a vm and answers when its agent is ready. Order of effects, each undone by `undo` (or at the next start of the daemon):
 *
 *   row (name, CID, MAC, capacity: one transaction) → folder, disk, logs → `starting` → boot (`vm/boot.ts`)
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
    if (earlier.fault)
      return Promise.reject(
        new Fault(earlier.fault.code, earlier.fault.kind as FaultKind, earlier.fault.message, earlier.fault.data),
      )
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
  host.step('row-inserted')
  return await host.queue.run(row.uid, () =>
    making(host, row, async () => {
      prepare(host, row)
      move(host.store, host.events, row.uid, 'prepared', newBoot())
      host.step('prepared')
      await boot(host, row)
    }),
  )
}

/** A new vm whole, or nothing of it. Call it in the vm's queue. */
export const making = async (host: Host, row: VmRow, work: () => Promise<void>): Promise<Vm> => {
  try {
    await work()
    const made = byUid(host.store, row.uid)
    if (!made) throw new Error('the row has gone')
    return view(made)
  } catch (error) {
    await undo(host, row, error)
    throw error
  }
}

/** The row of a new vm, with its key. */
const reserve = (host: Host, want: VmCreate, key: Key | undefined): VmRow => {
  const { name, ...filled } = Value.Default(VmCreate, structuredClone(want)) as VmSpec & { name?: string }
  const spec: VmSpec = { ...filled, env: filled.env ?? {}, metadata: filled.metadata ?? {} }
  const hypervisor = spec.hypervisor ?? host.hypervisors.nameFor(nicOf(spec))
  host.hypervisors.need(hypervisor)
  return reserving(host, [name], (tx, [identity]) => {
    if (!identity) throw new Error('no identity for a vm')
    const image = host.images.resolve(spec.image, tx)
    const kernel = host.kernels.resolve(spec.kernel)
    if (spec.hold && argvOf(spec, image.config).length === 0) throw workloadMissing({ image: spec.image })
    fits({ name: identity.name, machineId: identity.machineId, spec }, image.config)
    admit(tx, host.config, { cpuCores: spec.cpu_cores, memoryMb: spec.memory_mb })
    const row = insert(host, tx, identity, {
      spec,
      runtime: spec.runtime ?? spec.plugin ?? 'vm',
      plugin: spec.plugin ?? null,
      hypervisor,
      imageDigest: image.digest,
      kernelDigest: kernel.digest,
      cpuCores: spec.cpu_cores,
      memoryMb: spec.memory_mb,
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

/** The kind of network card that the vm's network asks for. */
const nicOf = (spec: VmSpec) => (spec.network.mode === 'user' ? spec.network.mode : undefined)

const prepare = (host: Host, row: VmRow): void => {
  makeFolder(host, row)
  try {
    writeTemplate(places(host.config, row).overlay, row.spec.disk_mb)
  } catch (error) {
    throw diskFault(error)
  }
  host.step('disk-made')
}

/** The folder of a new vm, with its logs. */
export const makeFolder = (host: Host, row: VmRow): void => {
  const at = places(host.config, row)
  mkdirSync(at.folder, { recursive: true, mode: 0o700 })
  for (const log of [at.consoleLog, at.vmmLog]) writeFileSync(log, '', { flag: 'a', mode: 0o600 })
  host.step('folder-made')
}

export const diskFault = (error: unknown): unknown =>
  hasCode(error, 'ENOSPC', 'EDQUOT')
    ? diskExhausted({ reason: 'the disk of the vm does not fit', problem: 'no_space' }, error)
    : error

/** Takes back a vm that nobody was told of: its reason stays in a durable event. */
const undo = async (host: Host, row: VmRow, error: unknown): Promise<void> => {
  const now = byUid(host.store, row.uid)
  if (!now || now.state === 'deleting') return
  const fault =
    error instanceof Fault
      ? error
      : new Fault('internal', 'internal', 'Cannot complete the request', {}, { cause: error })
  const message = `${fault.message}${consoleTail(host, row)}`.slice(0, 4000)
  immediate(host.store, (tx) => {
    host.events.append(tx, {
      type: 'VM_CREATE_FAILED',
      name: row.name,
      uid: row.uid,
      status: 'failed',
      mac: row.mac,
      message,
    })
  })
  const kept = host.store.select().from(idempotency).where(eq(idempotency.vmUid, row.uid)).get()
  move(host.store, host.events, row.uid, 'delete')
  await erase(host, row.uid)
  if (kept) {
    host.store
      .insert(idempotency)
      .values({
        ...kept,
        fault: { code: fault.code, kind: fault.kind, message: fault.message, data: { ...fault.data } },
      })
      .onConflictDoNothing()
      .run()
  }
}

/** The last lines of the console, which is gone with the vm. */
const consoleTail = (host: Host, row: VmRow): string => {
  try {
    const lines = lastLines(places(host.config, row).consoleLog, 5)
    return lines.length === 0 ? '' : `\nconsole: ${lines.join('\nconsole: ')}`
  } catch {
    return ''
  }
}
