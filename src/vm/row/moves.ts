import { and, eq, sql } from 'drizzle-orm'
import { type Cause, type VmState, after } from '../../contract/vm-state.ts'
import type { EventLog, EventType } from '../../store/events.ts'
import { type VmRow, vms } from '../../store/schema.ts'
import { type Store, immediate, prepared } from '../../store/store.ts'
import { vmNotFound, vmWrongState } from './errors.ts'

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
} as const satisfies Record<VmState, EventType>

export type Change = Partial<
  Pick<
    VmRow,
    | 'machine'
    | 'sessionSecret'
    | 'ackedSeq'
    | 'wasReady'
    | 'statusMessage'
    | 'exitCode'
    | 'exitSignal'
    | 'saved'
    | 'identityDue'
    | 'exitMessage'
    | 'bootMs'
    | 'startedAt'
    | 'stoppedAt'
    | 'spec'
    | 'kernelDigest'
    | 'hypervisor'
  >
>

type Set = Change & { readonly state?: VmState }

const value = sql.placeholder

const buildUpdate = (store: Store, set: Set) => {
  const columns = Object.entries(set).map(([name, one]) => [name, one === null ? null : value(name)])
  return store
    .update(vms)
    .set({ ...(Object.fromEntries(columns) as Set), gen: sql`${vms.gen} + 1`, updatedAt: sql`${value('now')}` })
}

const buildMove = (store: Store, set: Set) =>
  buildUpdate(store, set)
    .where(and(eq(vms.uid, value('uid')), eq(vms.gen, value('was'))))
    .returning()
    .prepare()

const buildChange = (store: Store, set: Set) =>
  buildUpdate(store, set)
    .where(eq(vms.uid, value('uid')))
    .prepare()

/** Statements by the columns that they set, a dozen of each: to build one costs ten times the UPDATE. */
const moves = prepared(() => new Map<string, ReturnType<typeof buildMove>>())

const changes = prepared(() => new Map<string, ReturnType<typeof buildChange>>())

/** The statement of these columns. A null is part of it, since it is no JSON. */
const statementOf = <S>(known: Map<string, S>, set: Set, build: () => S): S => {
  let key = ''
  for (const [name, one] of Object.entries(set)) key += one === null ? `${name}=null ` : `${name} `
  const found = known.get(key)
  if (found !== undefined) return found
  const built = build()
  known.set(key, built)
  return built
}

const given = (set: Set): Set => Object.fromEntries(Object.entries(set).filter(([, one]) => one !== undefined)) as Set

const selectHead = prepared((store) =>
  store
    .select({ name: vms.name, state: vms.state, gen: vms.gen, ip: vms.ip, mac: vms.mac })
    .from(vms)
    .where(eq(vms.uid, value('uid')))
    .prepare(),
)

/**
 * Moves a vm by the table, with what else changes in the same moment, and its event: one transaction, and one UPDATE guarded by `gen`,
 * so that of two racing callers the row lets one through.
 *
 * @throws `vm_not_found`, `vm_wrong_state`
 */
export const move = (store: Store, events: EventLog, uid: string, by: Cause, change: Change = {}): VmRow =>
  immediate(store, (tx) => {
    const row = selectHead(tx).get({ uid })
    if (!row) throw vmNotFound({ name: uid })
    const to = after(row.state, by)
    if (!to) throw vmWrongState({ name: row.name, status: row.state, verb: by })
    const set = given({ statusMessage: null, ...change, state: to })
    const moved = statementOf(moves(tx), set, () => buildMove(tx, set)).get({
      ...set,
      uid,
      now: Date.now(),
      was: row.gen,
    })
    if (!moved) throw vmWrongState({ name: row.name, status: row.state, verb: by })
    if (to !== 'deleting') {
      // VM_DELETED is said when the last of it has gone
      events.append(tx, {
        type: EVENT_OF[to],
        name: row.name,
        uid,
        status: to,
        ip: row.ip,
        mac: row.mac,
        pid: moved.machine?.process.pid ?? null,
        message: moved.statusMessage ?? '',
      })
    }
    return moved
  })

/** What a row forgets of the boot before when the next one begins. */
export const newBoot = (): Change => ({
  sessionSecret: null,
  ackedSeq: 0,
  exitCode: null,
  exitSignal: null,
  exitMessage: null,
  bootMs: null,
  machine: null,
  saved: null,
  identityDue: false,
  startedAt: Date.now(),
  stoppedAt: null,
})

/** Changes a row without a move; `gen` tells readers of it all the same. */
export const change = (store: Store, uid: string, set: Change): void => {
  const only = given(set)
  statementOf(changes(store), only, () => buildChange(store, only)).run({ ...only, uid, now: Date.now() })
}
