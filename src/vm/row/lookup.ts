import { eq, getTableColumns, or, sql, type SQL } from 'drizzle-orm'
import type { VmState } from '../../contract/vm-state.ts'
import { ID_BEGINNING_MIN, lookUp, MATCHES_MAX, type Use } from '../../lib/lookup.ts'
import { type VmRow, boots, vms } from '../../store/schema.ts'
import { type Store, prepared } from '../../store/store.ts'
import { vmAmbiguous, vmNotFound } from './errors.ts'

/** Selects vms, each with its boot. */
const selectVms = (store: Store) =>
  store
    .select({ ...getTableColumns(vms), boot: getTableColumns(boots) })
    .from(vms)
    .innerJoin(boots, eq(boots.vmUid, vms.uid))
    .$dynamic()

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
 * @throws `vm_not_found`, `vm_ambiguous`
 */
export const find = (store: Store, ref: string, use: Use = 'change'): VmRow => {
  const select = (where: SQL) => selectVms(store).where(where).limit(MATCHES_MAX).all()
  return lookUp(
    ref,
    {
      // No name has the form of a uid, so both are one question.
      exact: [
        () => selectNamed(store).all({ ref }),
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
export const byUid = (store: Store, uid: string): VmRow | undefined => selectByUid(store).get({ uid })

/** Reads every vm, or those in one state. */
export const all = (store: Store, state?: VmState): VmRow[] =>
  selectVms(store)
    .where(state && eq(vms.state, state))
    .all()

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
