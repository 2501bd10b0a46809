import { eq, or, sql } from 'drizzle-orm'
import { type VmRow, vms } from '../../store/schema.ts'
import { type Store, prepared } from '../../store/store.ts'
import { vmAmbiguous, vmNotFound } from './errors.ts'

const selectNamed = prepared((store) =>
  store
    .select()
    .from(vms)
    .where(or(eq(vms.name, sql.placeholder('ref')), eq(vms.uid, sql.placeholder('ref'))))
    .prepare(),
)

/** Text in a LIKE pattern that stands for itself. */
export const escaped = (text: string): string => text.replaceAll(/[\\%_]/g, '\\$&')

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
