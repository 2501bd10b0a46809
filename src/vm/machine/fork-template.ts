import { statSync, utimesSync } from 'node:fs'
import type { Host } from '../../host.ts'
import type { Machine, Saved } from '../../hypervisor/driver.ts'
import { hypervisorUnable } from '../../hypervisor/errors.ts'
import { cloneFile } from '../../linux/clone-file.ts'
import { closeSaved } from '../../snapshot/snapshots.ts'
import { immediate, type Store } from '../../store/store.ts'
import { saveFault } from '../../snapshot/saving.ts'
import type { BootRow, VmRow } from '../../store/schema.ts'
import { diskFault, makeFolder } from './vm-folder.ts'
import { freeze, unfreeze } from './freeze.ts'
import type { LiveVm } from './live.ts'
import { vmDeleted, vmWrongState } from '../row/errors.ts'
import { pathsOf } from '../row/layout.ts'
import { byUid } from '../row/lookup.ts'
import { change } from '../row/moves.ts'
import { saving } from './save.ts'

/** What the source's agent knows, and what it acknowledged. */
type Session = Partial<Pick<BootRow, 'sessionSecret' | 'ackedSeq'>>
export type Target = 'running' | 'standby' | 'stopped'

/** What clones are made of, taken at one moment of their source. Their disks and folders are there already. */
export interface Template {
  readonly target: Target
  /** What the source's agent knows: a clone of its memory knows it too. */
  readonly session: Session
  /** What running clones are restored from, the caller's to close; absent where they boot from their disk. */
  readonly saved?: Saved
}

/**
 * Takes a template of a vm for these clones; call it in the source's queue. A source that runs is frozen for as long as
 * its memory and disk take, and goes on.
 *
 * @throws `vm_wrong_state`, `hypervisor_unable`, `snapshot_failed`, `disk_exhausted`, `vm_deleted`, `machine_silent`
 */
export const takeTemplate = async (
  host: Host,
  uid: string,
  clones: readonly VmRow[],
  target: Target,
): Promise<Template> => {
  const source = byUid(host.store, uid)
  if (!source) throw vmDeleted({ name: uid })
  const session: Session =
    target === 'stopped' ? {} : { sessionSecret: source.boot.sessionSecret, ackedSeq: source.boot.ackedSeq }
  const live = host.vms.live.get(uid)
  const machine = live?.machine
  if ((source.state === 'running' || source.state === 'paused') && machine)
    return await ofMachine(host, source, { live, machine }, clones, target, session)
  if (source.state === 'standby' && source.snapshot !== null)
    return await ofSaved(host, source, source.snapshot, clones, target, session)
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
  session: Session,
): Promise<Template> => {
  if (target !== 'stopped' && (!machine.snapshot || !host.hypervisors.get(source.hypervisor)?.restore))
    throw hypervisorUnable({ hypervisor: source.hypervisor, verb: 'fork' })
  const runs = source.state === 'running'
  if (!runs) return await ofHeld(host, source, machine, clones, target, session)
  await freeze(host, live, machine, 'fork')
  let template: Template | undefined
  try {
    template = await ofHeld(host, source, machine, clones, target, session)
    return template
  } finally {
    await unfreeze(host, live, machine, 'fork').catch((error: unknown) => {
      if (template?.saved) closeSaved(template.saved) // nobody will hear of it
      throw error
    })
  }
}

const ofHeld = async (
  host: Pick<Host, 'config' | 'daemon' | 'store' | 'snapshots'>,
  source: VmRow,
  machine: Machine,
  clones: readonly VmRow[],
  target: Target,
  session: Session,
): Promise<Template> => {
  host.daemon.step('held')
  await cloneDisks(host, source, clones)
  switch (target) {
    case 'stopped':
      return { target, session }
    case 'running':
      return { target, session, saved: await saveForNow(host, source, machine) }
    case 'standby':
      await saveForLater(host, source, machine, clones)
      return { target, session }
  }
}

/** Saves the memory of a source for clones that run at once: it is shared where the driver can. */
const saveForNow = async (host: Pick<Host, 'snapshots'>, source: VmRow, machine: Machine): Promise<Saved> => {
  const into = host.snapshots.unnamed()
  try {
    return await saving(source, machine, 'fork', async (deadline) => {
      if (machine.fork) return await machine.fork(into, deadline)
      await machine.snapshot?.(into, deadline)
      return into
    })
  } catch (error) {
    closeSaved(into)
    throw saveFault(error)
  }
}

/** Saves a source for clones that sleep: one snapshot, to which each of them refers. */
const saveForLater = async (
  host: Pick<Host, 'store' | 'snapshots'>,
  source: VmRow,
  machine: Machine,
  clones: readonly VmRow[],
): Promise<void> => {
  try {
    const made = host.snapshots.create()
    try {
      await saving(source, machine, 'fork', async (deadline) => await machine.snapshot?.(made, deadline))
      await host.snapshots.keep(made.id)
    } catch (error) {
      host.snapshots.discard(made.id)
      throw error
    } finally {
      closeSaved(made)
    }
    immediate(host.store, (tx) => {
      host.snapshots.record(tx, made.id, source.uid)
      refer(tx, clones, made.id)
    })
  } catch (error) {
    throw saveFault(error)
  }
}

/** Lets clones refer to a snapshot from now on: whatever becomes of their source, it stays for them. */
const refer = (tx: Store, clones: readonly VmRow[], snapshot: string): void => {
  for (const clone of clones) change(tx, clone.uid, { snapshot })
}

const ofSaved = async (
  host: Pick<Host, 'config' | 'daemon' | 'store' | 'snapshots'>,
  source: VmRow,
  snapshot: string,
  clones: readonly VmRow[],
  target: Target,
  session: Session,
): Promise<Template> => {
  await cloneDisks(host, source, clones)
  switch (target) {
    case 'stopped':
      return { target, session }
    case 'running':
      return { target, session, saved: host.snapshots.open(snapshot) }
    case 'standby':
      immediate(host.store, (tx) => {
        refer(tx, clones, snapshot)
      })
      return { target, session }
  }
}

/**
 * Makes the folder of each clone, with the source's disk: blocks are shared where the file system can, and reach the
 * disk in the clone's own time.
 */
const cloneDisks = async (
  host: Pick<Host, 'config' | 'daemon'>,
  source: VmRow,
  clones: readonly VmRow[],
): Promise<void> => {
  const { overlay } = pathsOf(host.config, source)
  for (const clone of clones) {
    makeFolder(host, clone)
    try {
      const copy = pathsOf(host.config, clone).overlay
      await cloneFile(overlay, copy)
      const { atimeMs, mtimeMs } = statSync(overlay)
      utimesSync(copy, atimeMs / 1000, Math.floor(mtimeMs) / 1000) // whoever is restored from older memory has this disk, as `isAsSaved` sees
    } catch (error) {
      throw diskFault(error)
    }
    host.daemon.step('disk-made')
  }
}
