import { statSync } from 'node:fs'
import { basename, posix, resolve } from 'node:path'
import { Type } from '@sinclair/typebox'
import type { Client } from '../../../client/client.ts'
import { packPath, realLocal, statLocal } from '../../../client/tar.ts'
import { repack } from '../../../client/repack.ts'
import { unpack } from '../../../client/untar.ts'
import { fault } from '../../../lib/fault.ts'
import { command, type Context } from '../../command.ts'
import { parsePlace, planCopy, renameTop, targetMissing, type Looked, type Source } from './copy-plan.ts'
import { usageInvalid, yes } from '../../flags.ts'
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
  const stat = statSync(path, { throwIfNoEntry: false })
  return Promise.resolve({ exists: stat !== undefined, is_dir: stat?.isDirectory() === true })
}

/** `dir/.` is what is in it. */
const isContent = (path: string): boolean => path === '.' || path.endsWith('/.')

const guestSource = async (
  client: Client,
  vm: string,
  path: string,
  follow: boolean,
): Promise<Source & { readonly path: string }> => {
  const normal = posix.normalize(path).replace(/(?<=.)\/+$/, '')
  const stat = await client.call('vm.stat', {
    params: { name: vm },
    query: { path: normal, follow_links: follow || path.endsWith('/') || isContent(path) },
  })
  if (!stat.exists) throw guestPathMissing({ path })
  return {
    path: normal,
    isFolder: stat.is_dir,
    name: posix.basename(normal),
    contentOnly: isContent(path) || normal === '/',
  }
}

/** A whole tree, or one side of it, from a place to a place. */
const copyIn = async (
  context: Context,
  client: Client,
  from: string,
  vm: string,
  to: string,
  keep: boolean,
  follow: boolean,
): Promise<number> => {
  const owner = keep ? { owner: 'keep' as const } : { owner: 'root' as const }
  if (from === '-') {
    const found = await lookGuest(client, vm)(to)
    if (!found.exists || !found.is_dir) throw targetMissing({ path: to, where: IN_GUEST })
    using progress = new Progress(`${vm}:${to}`, context.out.quiet)
    let failure: unknown
    const body = stdin((error) => {
      failure = error
    })
    try {
      await client.upload(
        'vm.copy.in',
        { params: { name: vm }, query: { path: to, owner: 'keep' } },
        progress.count(body),
      )
    } catch (error) {
      throw failure ?? error
    }
    progress.done()
    return 0
  }
  const name = basename(resolve(from))
  const through = follow || from.endsWith('/') || isContent(from)
  const path = through ? realLocal(from) : resolve(from)
  const stat = statLocal(path)
  const plan = await planCopy(
    { isFolder: stat.isDirectory(), name, contentOnly: isContent(from) },
    to,
    lookGuest(client, vm),
    IN_GUEST,
  )
  using progress = new Progress(`${vm}:${to}`, context.out.quiet)
  let failure: unknown
  const body = packPath(path, {
    as: plan.as,
    owners: keep ? 'keep' : 'root',
    progress: progress.at,
    skipped: (skipped, reason) => {
      context.out.warn(`left out "${skipped}": ${reason}`)
    },
    failed: (error) => {
      failure = error
    },
  })
  try {
    await client.upload('vm.copy.in', { params: { name: vm }, query: { path: plan.folder, ...owner } }, body)
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
  const query = { path: source.path, ...(follow && { follow: true }) }
  if (to === '-') {
    for await (const chunk of await client.download('vm.copy.out', { params: { name: vm }, query }))
      await writeAll(1, chunk)
    return 0
  }
  const plan = await planCopy(source, to, lookHost, ON_HOST)
  using progress = new Progress(to, context.out.quiet)
  await unpack(await client.download('vm.copy.out', { params: { name: vm }, query }), plan.folder, {
    rename: renameTop(source.name, plan.as),
    progress: progress.at,
    skipped: (entry, reason) => {
      context.out.warn(`left out "${entry}": ${reason}`)
    },
  })
  progress.done()
  return 0
}

const copyAcross = async (
  context: Context,
  client: Client,
  from: { vm: string; path: string },
  to: { vm: string; path: string },
  follow: boolean,
): Promise<number> => {
  const source = await guestSource(client, from.vm, from.path, follow)
  const plan = await planCopy(source, to.path, lookGuest(client, to.vm), IN_GUEST)
  using progress = new Progress(`${to.vm}:${to.path}`, context.out.quiet)
  const down = await client.download('vm.copy.out', {
    params: { name: from.vm },
    query: { path: source.path, ...(follow && { follow: true }) },
  })
  await client.upload(
    'vm.copy.in',
    { params: { name: to.vm }, query: { path: plan.folder, owner: 'keep' } },
    repack(progress.count(down), renameTop(source.name, plan.as)),
  )
  progress.done()
  return 0
}

export const cp = command({
  usage: '[FLAGS] SOURCE TARGET',
  detail: `One side is VM:PATH, or both are; "-" is a tar on stdin or stdout. Into a folder that exists a copy goes inside; SOURCE/. copies what is in a folder.`,
  flags: {
    archive: yes('Keep owners; else all belongs to root', { short: 'a' }),
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
      return copyAcross(context, client, { vm: from.vm, path: from.path }, { vm: to.vm, path: to.path }, follow)
    if (to.vm !== undefined) return copyIn(context, client, from.path, to.vm, to.path, flags.archive === true, follow)
    return copyOut(context, client, from.vm ?? '', from.path, to.path, follow)
  },
})
