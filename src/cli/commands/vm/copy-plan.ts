/**
 * Decides where a copy goes, as docker cp does:
 *
 *   a file to nothing          → a file of that name (its folder exists)       a folder to nothing    → a folder of that name
 *   a file to a file           → in its place                                  a folder to a file     → refused
 *   a file to a folder         → into it                                       a folder to a folder   → into it; with SRC/. its content
 *   a file to "nothing/"       → refused
 *
 * One decision for both directions: only who looks at the target differs.
 */
import { posix } from 'node:path'
import { Type } from '@sinclair/typebox'
import { nameOfText } from '../../../client/tar-name.ts'
import { fault } from '../../../lib/fault.ts'

export const targetMissing = fault(
  'target_missing',
  'not_found',
  { path: Type.String(), where: Type.String() },
  (d) => `Cannot copy to "${d.path}": there is no such folder ${d.where}`,
)
export const targetNoFolder = fault(
  'target_no_folder',
  'conflict',
  { path: Type.String(), where: Type.String() },
  (d) => `Cannot copy to "${d.path}": ${d.where} it is a file, and a folder was to be copied`,
)

export const sourceNoFolder = fault(
  'source_no_folder',
  'conflict',
  { path: Type.String(), where: Type.String() },
  (d) => `Cannot copy "${d.path}": ${d.where} it is no folder`,
)

export const copyIntoItself = fault(
  'copy_into_itself',
  'conflict',
  { path: Type.String() },
  (d) => `Cannot copy "${d.path}" into itself`,
)

/** What stands at the target of a copy now. */
export interface Looked {
  readonly exists: boolean
  readonly is_dir: boolean
}

/** The source of a copy; `contentOnly` is `SRC/.`, what is in a folder without the folder. */
export interface Source {
  readonly isFolder: boolean
  readonly name: string
  readonly contentOnly: boolean
}
/** The folder to unpack into, and what the top of the archive is called there ("" = the top itself is that folder). */
export interface Plan {
  readonly folder: string
  readonly as: string
}

/** @param where  "in the vm" or "on this host", for the sentences */
export const planCopy = async (
  source: Source,
  target: string,
  look: (path: string) => Promise<Looked>,
  where: string,
): Promise<Plan> => {
  const path = posix.normalize(target).replace(/(?<=.)\/+$/, '')
  const found = await look(path)
  if (found.exists && found.is_dir) return { folder: path, as: source.contentOnly ? '' : source.name }
  if (found.exists && source.isFolder) throw targetNoFolder({ path: target, where })
  if (!found.exists && target.endsWith('/') && !source.isFolder) throw targetMissing({ path: target, where })
  if (found.exists && target.endsWith('/')) throw targetMissing({ path: target, where })
  const folder = posix.dirname(path)
  const parent = await look(folder)
  if (!parent.exists || !parent.is_dir) throw targetMissing({ path: folder, where })
  return { folder, as: posix.basename(path) }
}

/** Tells whether a copy within one vm would write over what it reads, or never come to an end. */
export const isInItself = (source: string, { folder, as }: Plan): boolean => {
  const target = posix.join(folder, as).replace(/(?<=.)\/+$/, '')
  return target === source || target.startsWith(source === '/' ? '/' : `${source}/`)
}

/** Gives the top of an archive another name: `etc/passwd` with `etc` → `copy` is `copy/passwd`; → "" is `passwd`. */
export const renameTop = (top: string, as: string) => {
  const old = nameOfText(top)
  const fresh = nameOfText(as)
  return (parts: readonly string[]): readonly string[] | undefined => {
    const below = old !== '' && parts[0] === old ? parts.slice(1) : parts
    return fresh === '' ? below : [fresh, ...below]
  }
}

/** Reads `vm:/path` or a path of this host; a name with a colon of its own is written ./name. */
export const parsePlace = (said: string): { readonly vm: string | undefined; readonly path: string } => {
  const colon = said.indexOf(':')
  if (said === '-' || colon <= 0 || said.startsWith('.') || said.startsWith('/')) return { vm: undefined, path: said }
  const path = said.slice(colon + 1)
  return { vm: said.slice(0, colon), path: path.startsWith('/') ? path : `/${path}` }
}
