import { randomBytes } from 'node:crypto'
import { eq, sql } from 'drizzle-orm'
import { vmEvents } from '../../contract/vm.ts'
import { newMac } from '../../network/leases.ts'
import { newId, newName } from '../../lib/id.ts'
import { boots, type VmRow, vms } from '../../store/schema.ts'
import { type Store, isDuplicate, prepared } from '../../store/store.ts'
import { vmExists } from './errors.ts'

/** The most generated names or addresses that may be taken in a row: after so many it is no chance any more. */
const CHANCES = 20

/** What the caller knows of a new vm; the rest is given here. */
export type Known = Pick<
  VmRow,
  'spec' | 'runtime' | 'plugin' | 'hypervisor' | 'imageDigest' | 'kernelDigest' | 'cpuCores' | 'memoryMb'
> &
  Partial<Pick<VmRow, 'forkedFrom'>>

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

const selectName = prepared((store) =>
  store
    .select({ uid: vms.uid })
    .from(vms)
    .where(eq(vms.name, value('name')))
    .prepare(),
)

/** Makes what the database may find taken. A test chooses them. */
export interface Chance {
  name(): string
  mac(): string
}
const CHANCE: Chance = { name: newName, mac: newMac }

/**
 * Inserts the row of a new vm, `pending`, under the wanted name or a generated one, with a uid, a CID and a MAC address
 * of its own. Call it in the one transaction of a create: what is unique is the database's to decide, and what was
 * generated is generated anew where it was taken.
 *
 * @throws `vm_exists`
 */
export const insert = (tx: Store, wanted: string | undefined, known: Known, chance: Chance = CHANCE): VmRow => {
  if (wanted !== undefined && selectName(tx).get({ name: wanted }) !== undefined) throw vmExists({ name: wanted })
  const one = { forkedFrom: null, ...known, uid: newId('vm'), machineId: newMachineId(), cid: freeCid(tx) }
  for (let attempt = 0; ; attempt++) {
    const name = wanted ?? chance.name()
    try {
      const row = insertVm(tx).get({ ...one, name, mac: chance.mac(), now: Date.now() })
      const boot = tx.insert(boots).values({ vmUid: row.uid }).returning().get()
      const data = { status: 'pending', mac_address: row.mac }
      tx.events.append(tx, vmEvents, { type: 'VM_CREATED', name, uid: row.uid, data })
      return { ...row, boot }
    } catch (error) {
      const byChance = isDuplicate(error, 'vms.mac') || (wanted === undefined && isDuplicate(error, 'vms.name'))
      if (!byChance || attempt >= CHANCES) throw error
    }
  }
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

/** Makes a machine-id(5) that is a version 4 UUID too. */
const newMachineId = (): string => {
  const bytes = randomBytes(16)
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80
  return bytes.toString('hex')
}
