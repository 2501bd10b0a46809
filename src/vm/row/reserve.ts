import { randomBytes } from 'node:crypto'
import { sql } from 'drizzle-orm'
import type { Host } from '../../host.ts'
import { newId, newName } from '../../lib/id.ts'
import { boots, type VmRow, vms } from '../../store/schema.ts'
import { type Store, immediate, isDuplicate, prepared } from '../../store/store.ts'
import { vmExists } from './errors.ts'

/** After this many generated names or addresses that were taken, one after the other, it is no chance any more. */
const CHANCES = 20

/** What one vm is and no other. */
export interface Identity {
  readonly uid: string
  readonly name: string
  readonly machineId: string
}

/** What the caller knows of a new vm; the rest is given here. */
export type Known = Pick<
  VmRow,
  'spec' | 'runtime' | 'plugin' | 'hypervisor' | 'imageDigest' | 'kernelDigest' | 'cpuCores' | 'memoryMb'
> &
  Partial<Pick<VmRow, 'forkedFrom'>>

/**
 * Runs the one transaction of a create: everything unique is the database's to decide. `work` is run again with other generated names
 * where one was taken; `name` gives the wanted name of the n-th vm, or undefined for a generated one.
 *
 * @throws `vm_exists`; what `work` throws, and then nothing is reserved
 */
export const reserving = <T>(
  host: Pick<Host, 'store'>,
  wanted: readonly (string | undefined)[],
  work: (tx: Store, identities: readonly Identity[]) => T,
): T => {
  for (let attempt = 0; ; attempt++) {
    const identities = wanted.map((name) => ({ uid: newId('vm'), name: name ?? newName(), machineId: newMachineId() }))
    try {
      return immediate(host.store, (tx) => work(tx, identities))
    } catch (error) {
      const sameName = isDuplicate(error, 'vms.name')
      const taken =
        sameName &&
        wanted.find(
          (name) =>
            name !== undefined && host.store.$client.query('SELECT 1 FROM vms WHERE name = ?').get(name) !== null,
        )
      if (typeof taken === 'string') throw vmExists({ name: taken })
      if ((!sameName && !isDuplicate(error, 'vms.mac')) || attempt > CHANCES) throw error
    }
  }
}

const value = sql.placeholder
const insertVm = prepared((store) =>
  store
    .insert(vms)
    .values({
      uid: value('uid'),
      name: value('name'),
      state: 'pending',
      spec: value('spec'),
      runtime: value('runtime'),
      plugin: value('plugin'),
      hypervisor: value('hypervisor'),
      imageDigest: value('imageDigest'),
      kernelDigest: value('kernelDigest'),
      cpuCores: value('cpuCores'),
      memoryMb: value('memoryMb'),
      cid: value('cid'),
      mac: value('mac'),
      machineId: value('machineId'),
      forkedFrom: value('forkedFrom'),
      createdAt: value('now'),
      updatedAt: value('now'),
    })
    .returning()
    .prepare(),
)

/** Inserts the row of a new vm, `pending`, with a CID and a MAC address of its own. Call it inside `reserving`. */
export const insert = (
  host: Pick<Host, 'store'>,
  tx: Store,
  { uid, name, machineId }: Identity,
  known: Known,
): VmRow => {
  const now = Date.now()
  const row = insertVm(tx).get({
    forkedFrom: null,
    ...known,
    uid,
    name,
    machineId,
    cid: freeCid(tx),
    mac: newMac(),
    now,
  })
  const boot = tx.insert(boots).values({ vmUid: uid }).returning().get()
  host.store.events.append(tx, { type: 'VM_CREATED', name, uid, status: 'pending', mac: row.mac })
  return { ...row, boot }
}

const selectCids = prepared((store) => store.select({ cid: vms.cid }).from(vms).prepare())

/** Finds the smallest CID that no vm has: 3 is the first a guest may use (virtio 1.2, section 5.10.4). */
const freeCid = (tx: Store): number => {
  const taken = new Set(
    selectCids(tx)
      .all()
      .map((row) => row.cid),
  )
  let cid = 3
  while (taken.has(cid)) cid++
  return cid
}

/** Makes a locally administered unicast address (IEEE 802, bit 1 of the first octet). */
const newMac = (): string => `02:${[...randomBytes(5)].map((byte) => byte.toString(16).padStart(2, '0')).join(':')}`

/** Makes a machine-id(5) that is a version 4 UUID too. */
const newMachineId = (): string => {
  const bytes = randomBytes(16)
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80
  return bytes.toString('hex')
}
