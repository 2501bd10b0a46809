import { isUtf8 } from 'node:buffer'
import { lstatSync, readlinkSync, statSync, type Stats } from 'node:fs'
import { basename, dirname, join, posix, resolve } from 'node:path'
import { Type } from '@sinclair/typebox'
import type { Client } from '../../../client/client.ts'
import { packPath, pathUnpackable, realLocal, statLocal } from '../../../client/tar.ts'
import { repack } from '../../../client/repack.ts'
import { onDisk, pathUnwritable, specialKind, unpack } from '../../../client/untar.ts'
import { fault } from '../../../lib/fault.ts'
import { command, type Context } from '../../command.ts'
import {
  copyIntoItself,
  isInItself,
  parsePlace,
  planCopy,
  renameTop,
  sourceNoFolder,
  targetMissing,
  type Looked,
  type Plan,
  type Source,
} from './copy-plan.ts'
import { usageInvalid, yes } from '../../flags.ts'
import { named } from './named.ts'
import { Progress } from '../../progress.ts'
import { writeAll } from '../../stdio.ts'
import { stdin } from '../../stdin.ts'

const guestPathMissing = fault(
  'guest_path_not_found',
  'not_found',
  { path: Type.String() },
  (d) => `Cannot find "${d.path}" in the vm`,
)

const IN_GUEST = 'in the vm'
const ON_HOST = 'on this host'

const lookGuest =
  (client: Client, vm: string) =>
  (path: string): Promise<Looked> =>
    client.call('vm.stat', { params: { name: vm }, query: { path, follow_links: true } })
const lookHost = (path: string): Promise<Looked> => {
  const stat = statTarget(path)
  return Promise.resolve({ exists: stat !== undefined, is_dir: stat?.isDirectory() === true })
}

/**
 * Tells what stands at a path of this host that is written to, its links followed; undefined where nothing does.
 * @throws `path_unwritable`
 */
const statTarget = (path: string): Stats | undefined => {
  try {
    return statSync(path, { throwIfNoEntry: false })
  } catch (error) {
    const { code } = error as { code?: unknown }
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
    if (code === 'ELOOP') throw pathUnwritable({ path, reason: 'its symbolic links lead in circles' }, error)
    throw onDisk(path, error)
  }
}

/** Tells whether a path means what is in a folder: `dir/.`. */
const isContent = (path: string): boolean => path === '.' || path.endsWith('/.')
/** Tells whether a name says that it is a folder's. */
const meansFolder = (path: string): boolean => path.endsWith('/') || isContent(path)

interface GuestSource extends Source {
  readonly query: { readonly path: string; readonly sparse: boolean; readonly follow?: boolean }
  readonly isFile: boolean
  /** A FIFO, a socket or a device. */
  readonly isSpecial: boolean
}

const guestSource = async (client: Client, vm: string, path: string, follow: boolean): Promise<GuestSource> => {
  const normal = posix.normalize(path).replace(/(?<=.)\/+$/, '')
  const through = follow || meansFolder(path)
  const stat = await client.call('vm.stat', { params: { name: vm }, query: { path: normal, follow_links: through } })
  if (!stat.exists) throw guestPathMissing({ path })
  if (meansFolder(path) && !stat.is_dir) throw sourceNoFolder({ path, where: IN_GUEST })
  return {
    isSpecial: !stat.is_file && !stat.is_dir && !stat.is_symlink,
    query: { path: normal, sparse: true, ...(through && { follow: true }) },
    isFile: stat.is_file,
    isFolder: stat.is_dir,
    name: posix.basename(normal),
    contentOnly: isContent(path) || normal === '/',
  }
}

/**
 * Reads where a link of this host leads. @throws `path_unwritable` where that is bytes that are no UTF-8: another file
 * would be written to
 */
const textOfLink = (path: string): string => {
  const target = readlinkSync(path, { encoding: 'buffer' })
  if (!isUtf8(target)) throw pathUnwritable({ path, reason: 'it is a symbolic link to a name that is not UTF-8' })
  return target.toString()
}

/** Follows a link of this host whose name a copied file is to have: the person who named it means what it leads to. */
const throughLinks = (plan: Plan): Plan => {
  let path = join(plan.folder, plan.as)
  const found = statTarget(path)
  const special = found && specialKind(found)
  if (special !== undefined) throw pathUnwritable({ path, reason: `${special} stands there` })
  // As many links as Linux follows (path_resolution(7)); the last may lead to what is yet to be made.
  for (let links = 0; links < 40 && lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true; links++)
    path = resolve(realLocal(dirname(path)), textOfLink(path))
  const folder = dirname(path)
  if (statTarget(folder)?.isDirectory() !== true) throw targetMissing({ path: folder, where: ON_HOST })
  return { folder, as: basename(path) }
}

/** Copies a whole tree, or one side of it, from a place to a place. */
const copyIn = async (
  context: Context,
  client: Client,
  from: string,
  vm: string,
  to: string,
  keep: boolean,
  follow: boolean,
): Promise<number> => {
  const how = { owner: keep ? ('keep' as const) : ('root' as const), ...(keep && { archive: true }) }
  const { uid } = await named(client, vm)
  if (from === '-') {
    const found = await lookGuest(client, uid)(to)
    if (!found.exists || !found.is_dir) throw targetMissing({ path: to, where: IN_GUEST })
    using progress = new Progress(`${vm}:${to}`, context.out.quiet)
    let failure: unknown
    const body = stdin((error) => {
      failure = error
    })
    try {
      await client.upload(
        'vm.copy.in',
        { params: { name: uid }, query: { ...how, path: to, owner: 'keep' } },
        progress.count(body),
      )
    } catch (error) {
      throw failure ?? error
    }
    progress.done()
    return 0
  }
  const name = basename(resolve(from))
  const through = follow || meansFolder(from)
  const path = through ? realLocal(from) : resolve(from)
  const stat = statLocal(path)
  const plan = await planCopy(
    { isFolder: stat.isDirectory(), name, contentOnly: isContent(from) },
    to,
    lookGuest(client, uid),
    IN_GUEST,
  )
  using progress = new Progress(`${vm}:${to}`, context.out.quiet)
  let failure: unknown
  const body = packPath(path, {
    as: plan.as,
    owners: keep ? 'keep' : 'root',
    devices: keep,
    progress: progress.at,
    skipped: (skipped, reason) => {
      context.out.warn(`left out "${skipped}": ${reason}`)
    },
    failed: (error) => {
      failure = error
    },
  })
  try {
    await client.upload('vm.copy.in', { params: { name: uid }, query: { ...how, path: plan.folder } }, body)
  } catch (error) {
    throw failure ?? error
  }
  progress.done()
  return 0
}

const copyOut = async (
  context: Context,
  client: Client,
  vm: string,
  from: string,
  to: string,
  follow: boolean,
): Promise<number> => {
  const source = await guestSource(client, vm, from, follow)
  const download = () => client.download('vm.copy.out', { params: { name: vm }, query: source.query })
  if (to === '-') {
    for await (const chunk of await download()) await writeAll(1, chunk)
    return 0
  }
  // In a tree it is left out with a word; here nothing would be copied.
  if (source.isSpecial) throw pathUnpackable({ path: from, reason: 'it is neither a file nor a folder' })
  const planned = await planCopy(source, to, lookHost, ON_HOST)
  const plan = source.isFile ? throughLinks(planned) : planned
  using progress = new Progress(to, context.out.quiet)
  await unpack(await download(), plan.folder, {
    rename: renameTop(source.name, plan.as),
    progress: progress.at,
    skipped: (entry, reason) => {
      context.out.warn(`left out "${entry}": ${reason}`)
    },
  })
  progress.done()
  return 0
}

/** Tells whether two names are of one vm, which has several. */
const isSameVm = async (client: Client, name: string, other: { readonly uid: string }): Promise<boolean> =>
  (await client.call('vm.get', { params: { name } })).uid === other.uid

const copyAcross = async (
  context: Context,
  client: Client,
  from: { vm: string; path: string },
  to: { vm: string; path: string },
  keep: boolean,
  follow: boolean,
): Promise<number> => {
  const target = await named(client, to.vm)
  const source = await guestSource(client, from.vm, from.path, follow)
  if (source.isSpecial && !keep) throw pathUnpackable({ path: from.path, reason: 'it is neither a file nor a folder' })
  const plan = await planCopy(source, to.path, lookGuest(client, target.uid), IN_GUEST)
  if (isInItself(source.query.path, plan) && (await isSameVm(client, from.vm, target)))
    throw copyIntoItself({ path: from.path })
  using progress = new Progress(`${to.vm}:${to.path}`, context.out.quiet)
  const down = await client.download('vm.copy.out', { params: { name: from.vm }, query: source.query })
  let failure: unknown
  const body = repack(progress.count(down), renameTop(source.name, plan.as), {
    archive: keep,
    skipped: (entry, reason) => {
      context.out.warn(`left out "${entry}": ${reason}`)
    },
    failed: (error) => {
      failure = error
    },
  })
  const query = { path: plan.folder, owner: 'keep' as const, ...(keep && { archive: true }) }
  try {
    await client.upload('vm.copy.in', { params: { name: target.uid }, query }, body)
  } catch (error) {
    throw failure ?? error
  }
  progress.done()
  return 0
}

export const cp = command({
  usage: '[FLAGS] SOURCE TARGET',
  detail: `One side is VM:PATH, or both are; "-" is a tar on stdin or stdout. Into a folder that exists a copy goes inside; SOURCE/. copies what is in a folder. What exists keeps its owner and mode unless -a says else; links are followed, FIFOs, sockets and devices refused.`,
  flags: {
    archive: yes('Keep owners (else all belongs to root), set-id bits and devices', { short: 'a' }),
    followLink: yes('Of a symbolic link SOURCE copy what it leads to', { short: 'L' }),
  },
  args: { min: 2, max: 2, nouns: ['place', 'place'] },
  async run(context, { flags, args }) {
    const from = parsePlace(args[0] ?? '')
    const to = parsePlace(args[1] ?? '')
    if (from.vm === undefined && to.vm === undefined) {
      throw usageInvalid({
        reason: 'Cannot copy: neither side is in a vm',
        hint: 'aerie cp FILE VM:/PATH, or aerie cp VM:/PATH FILE',
      })
    }
    // What is wrong on this host is said before a daemon is looked for.
    if (from.vm === undefined && from.path !== '-') statLocal(from.path)
    const client = await context.client()
    const follow = flags.followLink === true
    if (from.vm !== undefined && to.vm !== undefined)
      return copyAcross(
        context,
        client,
        { vm: from.vm, path: from.path },
        { vm: to.vm, path: to.path },
        flags.archive === true,
        follow,
      )
    if (to.vm !== undefined) return copyIn(context, client, from.path, to.vm, to.path, flags.archive === true, follow)
    return copyOut(context, client, from.vm ?? '', from.path, to.path, follow)
  },
})
