import type { Host } from '../../host.ts'
import type { Machine, Saved } from '../../hypervisor/driver.ts'
import { hypervisorUnable } from '../../hypervisor/errors.ts'
import { cloneFile } from '../../linux/clone-file.ts'
import { closeSaved, keepSaved, linkSaved, newSaved, openSaved, unnamedSaved } from '../../snapshot/saved-files.ts'
import { saveDeadline, saveFault } from '../../snapshot/saving.ts'
import type { VmRow } from '../../store/schema.ts'
import { diskFault, makeFolder } from './folder.ts'
import { freeze, unfreeze } from './freeze.ts'
import type { LiveVm } from './live.ts'
import { vmDeleted, vmWrongState } from '../row/errors.ts'
import { pathsOf } from '../row/layout.ts'
import { byUid } from '../row/lookup.ts'
import type { Change } from '../row/moves.ts'

export type Target = 'running' | 'standby' | 'stopped'

/** What clones are made of, taken at one moment of their source. Their disks and folders are there already. */
export interface Template {
  readonly target: Target
  /** What the source's agent knows: a clone of its memory knows it too. */
  readonly session: Change
  /** What running clones are restored from, the caller's to close; absent where they boot from their disk. */
  readonly saved?: Saved
  /** Folder in every clone's own, where the clones shall sleep. */
  readonly savedName?: string
}

/**
 * Takes a template of a vm for these clones; call it in the source's queue. A source that runs is held for as long as its memory and disk
 * take, and goes on.
 *
 * @throws `vm_wrong_state`, `hypervisor_unable`, `snapshot_failed`, `disk_exhausted`, `vm_deleted`
 */
export const takeTemplate = async (
  host: Host,
  uid: string,
  clones: readonly VmRow[],
  target: Target,
): Promise<Template> => {
  const source = byUid(host.store, uid)
  if (!source) throw vmDeleted({ name: uid })
  const session: Change = target === 'stopped' ? {} : { sessionSecret: source.sessionSecret, ackedSeq: source.ackedSeq }
  const live = host.live.get(uid)
  const machine = live?.machine
  if ((source.state === 'running' || source.state === 'paused') && machine)
    return await ofMachine(host, source, { live, machine }, clones, target, session)
  if (source.state === 'standby' && source.saved !== null)
    return await ofSaved(host, source, source.saved, clones, target, session)
  if ((source.state === 'stopped' || source.state === 'crashed') && target !== 'standby') {
    await cloneDisks(host, source, clones)
    return { target, session: {} }
  }
  throw vmWrongState({ name: source.name, status: source.state, verb: 'fork' })
}

const ofMachine = async (
  host: Host,
  source: VmRow,
  { live, machine }: { readonly live: LiveVm; readonly machine: Machine },
  clones: readonly VmRow[],
  target: Target,
  session: Change,
): Promise<Template> => {
  if (target !== 'stopped' && (!machine.snapshot || !host.hypervisors.get(source.hypervisor)?.restore))
    throw hypervisorUnable({ hypervisor: source.hypervisor, verb: 'fork' })
  const runs = source.state === 'running'
  if (!runs) return await ofHeld(host, source, machine, clones, target, session)
  await freeze(host, live, machine)
  let template: Template | undefined
  try {
    template = await ofHeld(host, source, machine, clones, target, session)
    return template
  } finally {
    await unfreeze(live, machine).catch((error: unknown) => {
      if (template?.saved) closeSaved(template.saved) // nobody will hear of it
      throw error
    })
  }
}

const ofHeld = async (
  host: Host,
  source: VmRow,
  machine: Machine,
  clones: readonly VmRow[],
  target: Target,
  session: Change,
): Promise<Template> => {
  host.step('held')
  await cloneDisks(host, source, clones)
  switch (target) {
    case 'stopped':
      return { target, session }
    case 'running':
      return { target, session, saved: await saveForNow(host, source, machine) }
    case 'standby':
      return { target, session, savedName: await saveForLater(host, source, machine, clones) }
  }
}

/** For clones that run at once: shared where the driver can. */
const saveForNow = async (host: Host, source: VmRow, machine: Machine): Promise<Saved> => {
  const into = unnamedSaved(pathsOf(host.config, source).folder)
  try {
    if (machine.fork) return await machine.fork(into, saveDeadline(source))
    await machine.snapshot?.(into, saveDeadline(source))
    return into
  } catch (error) {
    closeSaved(into)
    throw saveFault(error)
  }
}

/** For clones that sleep: one copy on disk, under a name in the folder of each. */
const saveForLater = async (
  host: Host,
  source: VmRow,
  machine: Machine,
  [first, ...others]: readonly VmRow[],
): Promise<string> => {
  if (!first) throw new Error('a fork without clones')
  const { folder } = pathsOf(host.config, first)
  try {
    const made = newSaved(folder)
    try {
      await machine.snapshot?.(made, saveDeadline(source))
    } finally {
      closeSaved(made)
    }
    await keepSaved(folder, made.name)
    await linkAll(host, folder, made.name, others)
    return made.name
  } catch (error) {
    throw saveFault(error)
  }
}

const ofSaved = async (
  host: Host,
  source: VmRow,
  name: string,
  clones: readonly VmRow[],
  target: Target,
  session: Change,
): Promise<Template> => {
  await cloneDisks(host, source, clones)
  const { folder } = pathsOf(host.config, source)
  switch (target) {
    case 'stopped':
      return { target, session }
    case 'running':
      return { target, session, saved: openSaved(folder, name) }
    case 'standby':
      await linkAll(host, folder, name, clones)
      return { target, session, savedName: name }
  }
}

const linkAll = async (host: Host, folder: string, name: string, to: readonly VmRow[]): Promise<void> => {
  for (const clone of to) {
    const its = pathsOf(host.config, clone).folder
    await linkSaved(folder, name, its)
    await keepSaved(its, name)
  }
}

/** The folder of each clone, with the source's disk: blocks are shared where the file system can, and reach the disk in the clone's own time. */
const cloneDisks = async (host: Host, source: VmRow, clones: readonly VmRow[]): Promise<void> => {
  const { overlay } = pathsOf(host.config, source)
  for (const clone of clones) {
    makeFolder(host, clone)
    try {
      await cloneFile(overlay, pathsOf(host.config, clone).overlay)
    } catch (error) {
      throw diskFault(error)
    }
    host.step('disk-made')
  }
}
