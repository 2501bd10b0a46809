import { and, asc, desc, eq, inArray, sql, type SQL } from 'drizzle-orm'
import { Value } from '@sinclair/typebox/value'
import { VmState } from '../../contract/vm-state.ts'
import type { Vm } from '../../contract/vm.ts'
import type { VmListQuery } from '../../contract/vm-list.ts'
import { vms } from '../../store/schema.ts'
import { type Store, prepared } from '../../store/store.ts'
import { filterInvalid } from './errors.ts'
import { byUid, escaped } from './lookup.ts'
import { view } from './view.ts'

const SORTS = {
  id: vms.id,
  name: vms.name,
  status: vms.state,
  runtime: vms.runtime,
  created_at: vms.createdAt,
  updated_at: vms.updatedAt,
}

/** Turns a query into a condition. @throws `filter_invalid` */
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
      sql`CASE WHEN json_valid(${vms.spec}) THEN json_extract(${vms.spec}, ${`$.metadata."${pair.slice(0, at).replaceAll(/["\\]/g, '')}"`}) END = ${pair.slice(at + 1)}`,
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

/** Reads a page of vms as a JSON array, and how many there are in all. @throws `filter_invalid` */
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

/** Reads a page of vms, and how many there are in all. @throws `filter_invalid` */
export const list = (store: Store, query: VmListQuery): { readonly vms: Vm[]; readonly total: number } => {
  const { json, total } = listJson(store, query)
  return { vms: JSON.parse(json) as Vm[], total }
}
