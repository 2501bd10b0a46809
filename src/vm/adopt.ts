import { messageOf } from '../lib/thrown.ts'
import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { ON_BOOT } from '../contract/vm-state.ts'
import type { Host, MachineHost } from '../host.ts'
import type { Machine } from '../hypervisor/driver.ts'
import { chain } from '../lib/fault.ts'
import { orAbort } from '../lib/promise.ts'
import { endMarked } from '../linux/marked.ts'
import type { VmRow } from '../store/schema.ts'
import { listenForAgent } from './machine/agent.ts'
import { boot, expireUnattached, watch } from './machine/boot.ts'
import { sweepCgroups } from './machine/cgroups.ts'
import { unmakeParts } from './machine/parts.ts'
import { unfreeze } from './machine/freeze.ts'
import type { LiveVm } from './machine/live.ts'
import { purge } from './machine/purge.ts'
import { resumeReboot } from './machine/reboot.ts'
import { completeRestore, isAsSaved } from './machine/restored.ts'
import { shutDown } from './machine/shutdown.ts'
import { tearDown } from './machine/teardown.ts'
import { immediate } from '../store/store.ts'
import { all, byUid, whyDamaged } from './row/lookup.ts'
import { change, move } from './row/moves.ts'

/** How long one machine may take to answer at the daemon's start. */
const PROBE_MS = 10_000

/**
 * Makes the rows true again after the daemon was away, however it ended: each vm is adopted, repaired or marked, and
 * what belongs to no row (process, folder, cgroup) is removed. Vms are looked at side by side; the API opens when all
 * are settled, and what takes longer (a guest that still boots, a stop that is asked again) goes on behind it.
 */
export const adoptAll = async (host: Host): Promise<void> => {
  host.snapshots.takeOver()
  const rows = all(host.store)
  await Promise.all(
    rows.map((row) =>
      host.vms.queue
        .run(row.uid, () => adopt(host, row))
        .catch((error: unknown) => {
          host.log.error({ vm: row.name, reasons: chain(error) }, 'cannot settle a vm')
        }),
    ),
  )
  await sweep(host)
}

const adopt = async (host: Host, row: VmRow): Promise<void> => {
  const damage = whyDamaged(row)
  if (damage !== undefined) {
    host.log.error({ vm: row.name, reason: damage }, 'the record of a vm is damaged')
    await probe(host, row) // it can be deleted, and runs until then where its machine is known
    return
  }
  switch (ON_BOOT[row.state]) {
    case 'keep':
      return
    case 'undo':
      await undoCreate(host, row)
      return
    case 'finish':
      if (row.state === 'deleting') {
        await tearDown(host, row, await probe(host, row))
        await endMarked(markOf(host, row))
        await purge(host, row.uid)
        return
      }
      if (await probe(host, row)) later(host, row, () => shutDown(host, row.uid, {}))
      else await lostMeanwhile(host, row)
      return
    case 'probe': {
      const live = await probe(host, row)
      if (!live?.machine) {
        if (row.state === 'starting' && !row.wasReady) await undoCreate(host, row)
        else if (row.state === 'starting' && row.quickReboots > 0) await rebootOn(host, row)
        else if (row.snapshot !== null && (row.boot.machine === null || isAsSaved(host, row)))
          await backToStandby(host, row)
        else await lostMeanwhile(host, row)
        return
      }
      if (row.boot.identityDue) await settleRestored(host, row, live, live.machine)
      else await settle(host, row, live, live.machine)
    }
  }
}

/**
 * Settles a restore that was cut short. It is taken back while the guest has written nothing, and completed after that;
 * a clone that was being restored is undone, since nobody was told of it.
 */
const settleRestored = async (host: Host, row: VmRow, live: LiveVm, machine: Machine): Promise<void> => {
  if (row.state === 'starting') {
    await tearDown(host, row, live)
    await undoCreate(host, row)
  } else if (isAsSaved(host, row)) {
    await tearDown(host, row, live)
    await backToStandby(host, row)
  } else {
    later(host, row, () => completeRestore(host, row, { live, machine }))
  }
}

/** Goes on with a vm whose guest had asked to be rebooted and has no machine yet. */
const rebootOn = async (host: Host, row: VmRow): Promise<void> => {
  await endMarked(markOf(host, row))
  await unmakeParts(host, row)
  change(host.store, row.uid, { boot: { machine: null } })
  later(host, row, () => resumeReboot(host, row, (again) => boot(host, again)))
}

const backToStandby = async (host: MachineHost, row: VmRow): Promise<void> => {
  await endMarked(markOf(host, row))
  await unmakeParts(host, row)
  move(host.store, row.uid, 'standby', { boot: { machine: null, identityDue: false } })
}

/** Makes the row say what a machine that is there does in truth. */
const settle = async (host: Host, row: VmRow, live: LiveVm, machine: Machine): Promise<void> => {
  const state = await machine.state(AbortSignal.timeout(PROBE_MS)).catch(() => undefined)
  expireUnattached(host, live, row)
  if (row.wasReady) live.follow()
  if (state === undefined) {
    if (row.state !== 'unknown') move(host.store, row.uid, 'lost', { statusMessage: 'its VMM does not answer' })
  } else if (row.state === 'unknown' && state !== 'ended') {
    move(host.store, row.uid, state === 'paused' ? 'found_paused' : 'found')
  } else if (row.state === 'running' && state === 'paused') {
    await unfreeze(host, live, machine, 'resume').catch(() => undefined) // a pause that nobody was told of, or a fork or standby that was cut short
  } else if (row.state === 'paused' && state === 'running') {
    move(host.store, row.uid, 'resume')
  } else if (row.state === 'starting' && state !== 'ended') {
    // its create or start goes on where it was: ready comes over the session, or the time is up
    later(host, row, async () => {
      const signal = AbortSignal.any([AbortSignal.timeout(host.config.boot_timeout_s * 1000), live.cancel.signal])
      try {
        await Promise.race([
          orAbort(live.ready.promise, signal),
          machine.ended.then((end) => {
            throw new Error(end.message)
          }),
        ])
      } catch (error) {
        if (byUid(host.store, row.uid)?.state !== 'starting') return
        await tearDown(host, row, live)
        if (row.wasReady)
          move(host.store, row.uid, 'broke', {
            boot: { machine: null },
            statusMessage: messageOf(error),
          })
        else await undoCreate(host, row)
      }
    })
  }
}

const later = (host: Pick<Host, 'log' | 'vms'>, row: VmRow, work: () => Promise<unknown>): void => {
  void host.vms.queue.run(row.uid, work).catch((error: unknown) => {
    host.log.warn({ vm: row.name, reasons: chain(error) }, 'cannot settle a vm')
  })
}

/** Takes over the machine of a row if it is still there: its session listens and its end is watched. */
const probe = async (host: Host, row: VmRow): Promise<LiveVm | undefined> => {
  const driver = host.hypervisors.get(row.hypervisor)
  if (!row.boot.machine || !driver) return undefined
  const machine = await driver.adopt(row.boot.machine, AbortSignal.timeout(PROBE_MS))
  if (!machine) return undefined
  const live = await listenForAgent(host, row)
  watch(host, live, machine)
  return live
}

/** Undoes a create that was cut short before its guest was ready: nobody was told that the vm exists. */
const undoCreate = async (host: MachineHost, row: VmRow): Promise<void> => {
  await endMarked(markOf(host, row))
  if (row.state !== 'deleting') move(host.store, row.uid, 'delete', { statusMessage: 'its create was cut short' })
  await purge(host, row.uid)
}

/** Writes down that the machine of a vm that was ready has gone while no daemon looked. */
const lostMeanwhile = async (host: MachineHost, row: VmRow): Promise<void> => {
  await endMarked(markOf(host, row))
  await unmakeParts(host, row)
  const removeFiles = immediate(host.store, (tx) => {
    if (row.snapshot !== null) change(tx, row.uid, { snapshot: null }) // its guest ran on from it, and has gone
    return host.snapshots.release(tx, row.snapshot)
  })
  removeFiles()
  const message = 'the machine ended while the daemon was away'
  if (row.boot.exitCode !== null || row.state === 'stopping') {
    move(host.store, row.uid, 'exited', {
      boot: { machine: null, stoppedAt: Date.now(), exitMessage: row.boot.exitMessage ?? message },
    })
  } else {
    move(host.store, row.uid, 'broke', {
      statusMessage: message,
      boot: { machine: null, stoppedAt: Date.now(), exitMessage: message },
    })
  }
  const after = byUid(host.store, row.uid)
  if (after?.spec.policy.auto_remove) {
    move(host.store, row.uid, 'delete')
    await purge(host, row.uid)
  }
}

const markOf = (host: Pick<Host, 'daemon'>, row: VmRow): string => `${host.daemon.stateId}/${row.uid}`

/** Removes what belongs to no row: processes by their mark, folders and cgroups by their name. */
const sweep = async (host: MachineHost): Promise<void> => {
  const rows = all(host.store)
  await endMarked(
    `${host.daemon.stateId}/`,
    new Set([
      ...rows.filter((row) => host.vms.live.has(row.uid)).map((row) => markOf(host, row)),
      ...host.networks.all().map(({ uid }) => host.networks.service.markOf(uid)),
    ]),
  )
  removeOthers(join(host.config.state, 'vms'), new Set(rows.map((row) => row.uid)))
  removeOthers(
    host.config.machines,
    new Set(rows.filter((row) => host.vms.live.has(row.uid)).map((row) => row.id.toString(36))),
  )
  await sweepCgroups(host, new Set(rows.filter((row) => host.vms.live.has(row.uid)).map((row) => row.uid)))
  host.snapshots.sweep()
  host.images.sweep()
  host.kernels.sweep()
}

const removeOthers = (folder: string, keep: ReadonlySet<string>): void => {
  let names: string[]
  try {
    names = readdirSync(folder)
  } catch {
    return
  }
  for (const name of names) if (!keep.has(name)) rmSync(join(folder, name), { recursive: true, force: true })
}

/** Asks every vm in `unknown` again, until it says what it is: nothing stays unknown because of one slow answer. */
export const reprobe = async (host: Host): Promise<void> => {
  for (const row of all(host.store, 'unknown')) {
    await host.vms.queue
      .run(row.uid, async () => {
        const now = byUid(host.store, row.uid)
        const live = host.vms.live.get(row.uid)
        if (now?.state !== 'unknown' || whyDamaged(now) !== undefined) return
        if (live?.machine) await settle(host, now, live, live.machine)
        else await lostMeanwhile(host, now)
      })
      .catch((error: unknown) => {
        host.log.debug({ vm: row.name, reasons: chain(error) }, 'a vm is still unknown')
      })
  }
}
