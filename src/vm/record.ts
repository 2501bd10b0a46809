import { and, asc, desc, eq, inArray, or, sql, type SQL } from 'drizzle-orm'
import type { Vm, VmListQuery } from '../contract/vm.ts'
import { VmState } from '../contract/vm-state.ts'
import { after, type Cause } from '../contract/vm-state.ts'
import { Value } from '@sinclair/typebox/value'
import type { EventLog, EventType } from '../store/events.ts'
import { vms, type VmRow } from '../store/schema.ts'
import { immediate, prepared, type Store } from '../store/store.ts'
import { filterInvalid, vmAmbiguous, vmNotFound, vmWrongState } from './errors.ts'

const iso = (ms: number): string => new Date(ms).toISOString()

/** A row as the API shows it. No values of the environment: they may be secrets. */
export const view = (row: VmRow): Vm => ({
  id: row.id,
  uid: row.uid,
  name: row.name,
  status: row.state,
  status_message: row.statusMessage,
  runtime: row.runtime,
  plugin: row.plugin,
  image: row.spec.image,
  image_digest: row.imageDigest,
  kernel: row.kernelDigest,
  hypervisor: row.hypervisor,
  pid: row.machine?.process.pid ?? null,
  ip_address: row.ip,
  mac_address: row.mac,
  vsock_cid: row.cid,
  cpu_cores: row.cpuCores,
  memory_mb: row.memoryMb,
  disk_mb: row.spec.disk_mb,
  kernel_cmdline: row.spec.kernel_cmdline,
  serial_socket: row.machine ? `${row.machine.folder}/console.sock` : '',
  network: row.spec.network,
  port: row.spec.port ?? null,
  tty: row.spec.tty,
  auto_remove: row.spec.auto_remove,
  entrypoint: row.spec.entrypoint ? [...row.spec.entrypoint] : null,
  cmd: row.spec.cmd ? [...row.spec.cmd] : null,
  env_names: Object.keys(row.spec.env),
  metadata: { ...row.spec.metadata },
  stop_timeout_s: row.spec.stop_timeout_s,
  forkable: row.spec.forkable ?? false,
  forked_from: row.forkedFrom,
  exit_code: row.exitCode,
  exit_signal: row.exitSignal,
  exit_message: row.exitMessage,
  boot_ms: row.bootMs,
  gen: row.gen,
  created_at: iso(row.createdAt),
  updated_at: iso(row.updatedAt),
  started_at: row.startedAt === null ? null : iso(row.startedAt),
  stopped_at: row.stoppedAt === null ? null : iso(row.stoppedAt),
})

const selectNamed = prepared((store) =>
  store
    .select()
    .from(vms)
    .where(or(eq(vms.name, sql.placeholder('ref')), eq(vms.uid, sql.placeholder('ref'))))
    .prepare(),
)

/** Text in a LIKE pattern that stands for itself. */
const escaped = (text: string): string => text.replaceAll(/[\\%_]/g, '\\$&')

/**
 * One vm by id, then name, then uid, then a prefix of uid or name that fits it alone.
 *
 * @throws `vm_not_found`, `vm_ambiguous`
 */
export const find = (store: Store, ref: string): VmRow => {
  const exact = /^[1-9]\d{0,15}$/.test(ref)
    ? store
        .select()
        .from(vms)
        .where(eq(vms.id, Number(ref)))
        .get()
    : undefined
  const named = exact ?? selectNamed(store).get({ ref })
  if (named) return named
  const prefix = `${escaped(ref)}%`
  const found = store
    .select()
    .from(vms)
    .where(or(sql`${vms.uid} LIKE ${prefix} ESCAPE '\\'`, sql`${vms.name} LIKE ${prefix} ESCAPE '\\'`))
    .limit(6)
    .all()
  if (found.length > 1) throw vmAmbiguous({ name: ref, matches: found.map((row) => row.name) })
  if (!found[0]) throw vmNotFound({ name: ref })
  return found[0]
}

const selectByUid = prepared((store) =>
  store
    .select()
    .from(vms)
    .where(eq(vms.uid, sql.placeholder('uid')))
    .prepare(),
)

export const byUid = (store: Store, uid: string): VmRow | undefined => selectByUid(store).get({ uid })

const selectSession = prepared((store) =>
  store
    .select({ secret: vms.sessionSecret, acked: vms.ackedSeq })
    .from(vms)
    .where(eq(vms.uid, sql.placeholder('uid')))
    .prepare(),
)

/** What the agent's session asks of a row, with each of its events. */
export const sessionOf = (
  store: Store,
  uid: string,
): { readonly secret: string | null; readonly acked: number } | undefined => selectSession(store).get({ uid })

const SORTS = {
  id: vms.id,
  name: vms.name,
  status: vms.state,
  runtime: vms.runtime,
  created_at: vms.createdAt,
  updated_at: vms.updatedAt,
}

/** @throws `filter_invalid` */
const filterOf = (query: VmListQuery): SQL | undefined => {
  const wheres: SQL[] = []
  if (query.status !== undefined) {
    const states = query.status.split(',').filter((word) => word !== '')
    const wrong = states.find((word) => !Value.Check(VmState, word))
    if (wrong !== undefined) throw filterInvalid({ filter: 'status', reason: `"${wrong}" is no state` })
    wheres.push(inArray(vms.state, states as VmState[]))
  }
  if (query.runtime !== undefined) wheres.push(eq(vms.runtime, query.runtime))
  if (query.plugin !== undefined) wheres.push(eq(vms.plugin, query.plugin))
  if (query.q !== undefined) wheres.push(sql`${vms.name} LIKE ${`%${escaped(query.q)}%`} ESCAPE '\\'`)
  const pairs = query.metadata === undefined ? [] : Array.isArray(query.metadata) ? query.metadata : [query.metadata]
  for (const pair of pairs) {
    const at = pair.indexOf('=')
    if (at < 1) throw filterInvalid({ filter: 'metadata', reason: `"${pair}" is not key=value` })
    wheres.push(
      sql`json_extract(${vms.spec}, ${`$.metadata."${pair.slice(0, at).replaceAll(/["\\]/g, '')}"`}) = ${pair.slice(at + 1)}`,
    )
  }
  return and(...wheres)
}

/** What each vm looked like at its `gen`, as JSON: a list is asked for often, and a row changes seldom. */
const shown = prepared(() => new Map<string, { readonly gen: number; readonly json: string }>())
const SHOWN_MAX = 10_000

const jsonOf = (store: Store, uid: string, gen: number): string | undefined => {
  const cache = shown(store)
  const known = cache.get(uid)
  if (known?.gen === gen) return known.json
  const row = byUid(store, uid)
  if (!row) return undefined
  if (cache.size >= SHOWN_MAX) cache.clear()
  const json = JSON.stringify(view(row))
  cache.set(uid, { gen: row.gen, json })
  return json
}

/** A page of vms as a JSON array, and how many there are in all. @throws `filter_invalid` */
export const listJson = (store: Store, query: VmListQuery): { readonly json: string; readonly total: number } => {
  const where = filterOf(query)
  const by = SORTS[query.sort ?? 'id']
  const keys = store
    .select({ uid: vms.uid, gen: vms.gen })
    .from(vms)
    .where(where)
    .orderBy(query.order === 'desc' ? desc(by) : asc(by), asc(vms.id))
    .limit(query.limit ?? 1000)
    .offset(query.offset ?? 0)
    .all()
  const total =
    query.limit === undefined && keys.length < 1000 && (query.offset ?? 0) === 0
      ? keys.length
      : (store.select({ n: sql<number>`count(*)` }).from(vms).where(where).get()?.n ?? 0)
  return { json: `[${keys.flatMap(({ uid, gen }) => jsonOf(store, uid, gen) ?? []).join(',')}]`, total }
}

/** The same as values. @throws `filter_invalid` */
export const list = (store: Store, query: VmListQuery): { readonly vms: Vm[]; readonly total: number } => {
  const { json, total } = listJson(store, query)
  return { vms: JSON.parse(json) as Vm[], total }
}

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
