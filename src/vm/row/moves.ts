import { type VmEventType, vmEvents } from '../../contract/vm.ts'
import { and, eq, sql } from 'drizzle-orm'
import { type Cause, type VmState, after } from '../../contract/vm-state.ts'
import { type BootRow, type VmRow, boots, vms } from '../../store/schema.ts'
import { type Store, immediate, prepared } from '../../store/store.ts'
import { vmNotFound, vmWrongState } from './errors.ts'
import { byUid } from './lookup.ts'

/** What a state is called in the log of events. */
const EVENT_OF = {
  pending: 'VM_CREATED',
  starting: 'VM_STARTING',
  running: 'VM_RUNNING',
  paused: 'VM_PAUSED',
  standby: 'VM_STANDBY',
  stopping: 'VM_STOPPING',
  stopped: 'VM_STOPPED',
  crashed: 'VM_CRASHED',
  deleting: 'VM_DELETED',
  unknown: 'VM_UNKNOWN',
} as const satisfies Record<VmState, VmEventType>

type VmSet = Partial<
  Pick<
    VmRow,
    'state' | 'wasReady' | 'statusMessage' | 'quickReboots' | 'snapshot' | 'spec' | 'kernelDigest' | 'hypervisor'
  >
>
type BootSet = Partial<Omit<BootRow, 'vmUid'>>

/** What changes of a vm in one moment. */
export interface Change extends Omit<VmSet, 'state'> {
  /** What changes of the boot that is under way. */
  readonly boot?: BootSet
  /**
   * Begins another boot with this and nothing else: what the last one was is forgotten, and so is what was saved
   * before.
   */
  readonly newBoot?: BootSet
}

const value = sql.placeholder

/** Makes placeholders of the columns of `set`. A null is part of the statement, since it is no JSON. */
const placeholders = <S extends object>(set: S): S =>
  Object.fromEntries(Object.entries(set).map(([name, one]) => [name, one === null ? null : value(name)])) as S

const buildUpdate = (store: Store, set: VmSet) =>
  store.update(vms).set({ ...placeholders(set), gen: sql`${vms.gen} + 1`, updatedAt: sql`${value('now')}` })
const buildMove = (store: Store, set: VmSet) =>
  buildUpdate(store, set)
    .where(and(eq(vms.uid, value('uid')), eq(vms.gen, value('was'))))
    .returning({ uid: vms.uid })
    .prepare()
const buildChange = (store: Store, set: VmSet) =>
  buildUpdate(store, set)
    .where(eq(vms.uid, value('uid')))
    .prepare()
const buildBoot = (store: Store, set: BootSet) =>
  store
    .update(boots)
    .set(placeholders(set))
    .where(eq(boots.vmUid, value('uid')))
    .prepare()

/** Statements by the columns that they set, a dozen of each: to build one costs ten times the UPDATE. */
const moves = prepared(() => new Map<string, ReturnType<typeof buildMove>>())
const changes = prepared(() => new Map<string, ReturnType<typeof buildChange>>())
const bootChanges = prepared(() => new Map<string, ReturnType<typeof buildBoot>>())

/** Finds the statement that sets these columns, or builds it. */
const statementOf = <S>(known: Map<string, S>, set: object, build: () => S): S => {
  let key = ''
  for (const [name, one] of Object.entries(set)) key += one === null ? `${name}=null ` : `${name} `
  const found = known.get(key)
  if (found !== undefined) return found
  const built = build()
  known.set(key, built)
  return built
}

const given = <S extends object>(set: S): S =>
  Object.fromEntries(Object.entries(set).filter(([, one]) => one !== undefined)) as S

const deleteBoot = prepared((store) =>
  store
    .delete(boots)
    .where(eq(boots.vmUid, value('uid')))
    .prepare(),
)

/** Writes what a change says of the boot. */
const setBoot = (tx: Store, uid: string, { boot, newBoot }: Change): void => {
  if (newBoot) {
    deleteBoot(tx).run({ uid })
    tx.insert(boots)
      .values({ startedAt: Date.now(), ...newBoot, vmUid: uid })
      .run()
  }
  if (!boot) return
  const set = given(boot)
  if (Object.keys(set).length > 0) statementOf(bootChanges(tx), set, () => buildBoot(tx, set)).run({ ...set, uid })
}

/** Picks the columns of the vm's own row that a change sets. */
const vmSet = ({ boot: _, newBoot, ...set }: Change): VmSet => given({ ...(newBoot && { snapshot: null }), ...set })

const selectHead = prepared((store) =>
  store
    .select({ name: vms.name, state: vms.state, gen: vms.gen, ip: vms.ip, mac: vms.mac })
    .from(vms)
    .where(eq(vms.uid, value('uid')))
    .prepare(),
)

/**
 * Moves a vm by the table, with what else changes in the same moment, and its event: one transaction, and one UPDATE
 * guarded by `gen`, so that of two racing callers the row lets one through.
 *
 * @throws `vm_not_found`, `vm_wrong_state`
 */
export const move = (store: Store, uid: string, by: Cause, change: Change = {}): VmRow =>
  immediate(store, (tx) => {
    const row = selectHead(tx).get({ uid })
    if (!row) throw vmNotFound({ name: uid })
    const to = after(row.state, by)
    if (!to) throw vmWrongState({ name: row.name, status: row.state, verb: by })
    const set = { statusMessage: null, ...vmSet(change), state: to }
    const won = statementOf(moves(tx), set, () => buildMove(tx, set)).get({
      ...set,
      uid,
      now: Date.now(),
      was: row.gen,
    })
    setBoot(tx, uid, change)
    const moved = byUid(tx, uid)
    if (!won || !moved) throw vmWrongState({ name: row.name, status: row.state, verb: by })
    if (to !== 'deleting') {
      // VM_DELETED is said when the last of it has gone
      tx.events.append(tx, vmEvents, {
        type: EVENT_OF[to],
        name: row.name,
        uid,
        message: moved.statusMessage ?? '',
        data: {
          status: to,
          ip_address: row.ip,
          mac_address: row.mac,
          pid: moved.boot.machine?.process.pid ?? null,
        },
      })
    }
    return moved
  })

/** Changes a vm without a move; `gen` tells readers of it all the same. */
export const change = (store: Store, uid: string, set: Change): void => {
  immediate(store, (tx) => {
    const only = vmSet(set)
    statementOf(changes(tx), only, () => buildChange(tx, only)).run({ ...only, uid, now: Date.now() })
    setBoot(tx, uid, set)
  })
}
