import { eq, getTableColumns, or, sql, type SQL } from 'drizzle-orm'
import { VmState } from '../../contract/vm-state.ts'
import { ID_BEGINNING_MIN, lookUp, MATCHES_MAX, type Use } from '../../lib/reference.ts'
import { whyUnreadable } from '../../store/json-column.ts'
import { type BootRow, type VmRow, boots, vms } from '../../store/schema.ts'
import { type Store, prepared } from '../../store/store.ts'
import { vmAmbiguous, vmDamaged, vmNotFound } from './errors.ts'

/** Selects vms, each with its boot. */
const selectVms = (store: Store) =>
  store
    .select({ ...getTableColumns(vms), boot: getTableColumns(boots) })
    .from(vms)
    .leftJoin(boots, eq(boots.vmUid, vms.uid))
    .$dynamic()

/** A row as it was selected: of what was damaged, stand-ins. */
type Selected = ReturnType<ReturnType<typeof selectVms>['all']>[number]

const STATES: ReadonlySet<string> = new Set(VmState.anyOf.map((one) => String(one.const)))
const noBoot = (vmUid: string): BootRow => ({
  vmUid,
  machine: null,
  sessionSecret: null,
  ackedSeq: 0,
  identityDue: false,
  bootMs: null,
  exitCode: null,
  exitSignal: null,
  exitMessage: null,
  startedAt: null,
  stoppedAt: null,
})

const unreadable = new WeakMap<VmRow, string>()

/**
 * Tells what of a vm's record cannot be read; undefined where all of it can. Such a vm can be looked at and deleted,
 * and nothing else.
 */
export const whyDamaged = (row: VmRow): string | undefined => unreadable.get(row)

/** Takes a row as it is. One that was damaged costs its own vm alone: it is `unknown`, and says why. */
const readable = (row: Selected): VmRow => {
  const { boot } = row
  const machine = boot?.machine ?? null
  const reason =
    whyUnreadable(row.spec) ??
    whyUnreadable(machine) ??
    (boot === null ? 'it has no boot' : STATES.has(row.state) ? undefined : 'column state is no state')
  if (reason === undefined && boot !== null) return { ...row, boot }
  const instead: VmRow = {
    ...row,
    state: 'unknown',
    statusMessage: `its record is damaged: ${reason}`,
    boot: { ...(boot ?? noBoot(row.uid)), machine: whyUnreadable(machine) === undefined ? machine : null },
  }
  unreadable.set(instead, reason ?? '')
  return instead
}

const selectNamed = prepared((store) =>
  selectVms(store)
    .where(or(eq(vms.name, sql.placeholder('ref')), eq(vms.uid, sql.placeholder('ref'))))
    .prepare(),
)

/** Escapes text so that it stands for itself in a LIKE pattern. */
export const escaped = (text: string): string => text.replaceAll(/[\\%_]/g, '\\$&')

const BEGINNING = new RegExp(`^vm_[0-9a-z]{${ID_BEGINNING_MIN},20}$`)

/**
 * Finds one vm by its uid, its name, its number, or (to be read, `use`) the beginning of its uid.
 *
 * @throws `vm_not_found`, `vm_ambiguous`; `vm_damaged` where it is to be changed and its record cannot be read
 */
export const find = (store: Store, ref: string, use: Use = 'change'): VmRow => {
  const row = findAny(store, ref, use)
  const reason = use === 'change' ? whyDamaged(row) : undefined
  if (reason !== undefined) throw vmDamaged({ name: row.name, reason })
  return row
}

/**
 * Finds one vm as `find` does, to be deleted: even one whose record is damaged. @throws `vm_not_found`, `vm_ambiguous`
 */
export const findAny = (store: Store, ref: string, use: Use = 'change'): VmRow => {
  const select = (where: SQL) => selectVms(store).where(where).limit(MATCHES_MAX).all().map(readable)
  return lookUp(
    ref,
    {
      // No name has the form of a uid, so both are one question.
      exact: [
        () => selectNamed(store).all({ ref }).map(readable),
        () => (/^[1-9]\d{0,15}$/.test(ref) ? select(eq(vms.id, Number(ref))) : []),
      ],
      beginning: () => (BEGINNING.test(ref) ? select(sql`${vms.uid} GLOB ${`${ref}*`}`) : []),
      like: () => select(sql`${vms.name} LIKE ${`${escaped(ref)}%`} ESCAPE '\\'`).map((row) => row.name),
      nameOf: (row) => row.name,
      notFound: (name, meant) => vmNotFound({ name, meant: [...meant] }),
      ambiguous: (name, matches) => vmAmbiguous({ name, matches: [...matches] }),
    },
    use,
  )
}

const selectByUid = prepared((store) =>
  selectVms(store)
    .where(eq(vms.uid, sql.placeholder('uid')))
    .prepare(),
)

/** Reads one vm; undefined where it is gone. */
export const byUid = (store: Store, uid: string): VmRow | undefined => {
  const row = selectByUid(store).get({ uid })
  return row && readable(row)
}

/** Reads every vm, or those in one state. */
export const all = (store: Store, state?: VmState): VmRow[] =>
  selectVms(store)
    .where(state && eq(vms.state, state))
    .all()
    .map(readable)

const selectSession = prepared((store) =>
  store
    .select({ secret: boots.sessionSecret, acked: boots.ackedSeq })
    .from(boots)
    .where(eq(boots.vmUid, sql.placeholder('uid')))
    .prepare(),
)

/** Reads what the agent's session asks of a boot, with each of its events. */
export const sessionOf = (
  store: Store,
  uid: string,
): { readonly secret: string | null; readonly acked: number } | undefined => selectSession(store).get({ uid })
