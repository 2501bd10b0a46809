import { isDeepStrictEqual } from 'node:util'
import type { Host, MachineHost } from '../../host.ts'
import type { End, MachineIdentity } from '../../hypervisor/driver.ts'
import { chain } from '../../lib/fault.ts'
import { cgroupUsage } from '../../linux/cgroup.ts'
import type { VmRow } from '../../store/schema.ts'
import { MEMORY_OVERHEAD_MIB, cgroupOf } from './cgroups.ts'
import type { LiveVm } from './live.ts'
import { purge } from './purge.ts'
import { removeRuntime } from './teardown.ts'
import { byUid } from '../row/lookup.ts'
import { move } from '../row/moves.ts'

/**
 * Writes down how a machine ended, then lets go of what it held: first the row, then the process (it may hold the
 * reason for a daemon that crashes right here), then sockets and cgroups. A step that fails, as on a full disk, holds
 * up none of those behind it, and an end that could not be written down is tried again (`recordPendingEnds`). Call it
 * in the vm's queue, once for a live vm.
 *
 * @throws Error: the first step that failed
 */
export const recordEnd = async (host: Host, live: LiveVm, end: End): Promise<void> => {
  host.vms.live.delete(live.uid)
  await live.drainIfConnected()
  const row = byUid(host.store, live.uid)
  const failures: unknown[] = []
  const attempt = async (step: () => unknown): Promise<void> => {
    try {
      await step()
    } catch (error) {
      failures.push(error)
    }
  }
  await attempt(() => {
    const why = row ? killedForMemory(host, row, end) : end
    keepPending(host, live.uid, row?.boot.machine ?? undefined, why)
    writeEnd(host, live.uid, why)
    dropPending(host, live.uid)
  })
  host.daemon.step('end-recorded')
  await attempt(() => live.machine?.kill())
  await attempt(() => {
    live.close()
  })
  if (row) {
    await attempt(() => removeRuntime(host, row))
    await attempt(() => removeIfWanted(host, live.uid))
  }
  if (failures.length > 0) throw failures[0]
}

const writeEnd = (host: Pick<Host, 'store'>, uid: string, end: End): void => {
  const row = byUid(host.store, uid)
  if (!row) return
  const stoppedAt = Date.now()
  if (row.state === 'running' && end.reason === 'reboot') {
    move(host.store, uid, 'rebooted', { newBoot: {}, statusMessage: 'the guest rebooted' })
  } else if (row.state === 'starting') {
    // the boot that is under way reports it
  } else if (
    end.reason === 'poweroff' ||
    end.reason === 'reboot' ||
    row.state === 'stopping' ||
    row.boot.exitCode !== null
  ) {
    if (row.state !== 'deleting') {
      move(host.store, uid, 'exited', {
        boot: { machine: null, stoppedAt, exitMessage: row.boot.exitMessage ?? ended(end) },
      })
    }
  } else if (row.state !== 'deleting') {
    const reason = crashed(end)
    move(host.store, uid, 'broke', {
      statusMessage: row.state === 'paused' ? reason : (row.statusMessage ?? reason),
      boot: { machine: null, stoppedAt, exitMessage: row.boot.exitMessage ?? reason },
    })
  }
}

/** Deletes a vm that has ended and shall delete itself then. */
export const removeIfWanted = async (host: MachineHost, uid: string): Promise<void> => {
  const row = byUid(host.store, uid)
  if (row?.spec.policy.auto_remove && (row.state === 'stopped' || row.state === 'crashed')) {
    move(host.store, uid, 'delete')
    await purge(host, uid)
  }
}

/** Ends that are not in their rows yet, by uid: of which machine, and how it ended. */
interface PendingEnd {
  readonly machine: MachineIdentity
  readonly end: End
}
const pendingOf = new WeakMap<Host, Map<string, PendingEnd>>()

const keepPending = (host: Host, uid: string, machine: MachineIdentity | undefined, end: End): void => {
  if (!machine) return
  const pending = pendingOf.get(host) ?? new Map<string, PendingEnd>()
  pendingOf.set(host, pending.set(uid, { machine, end }))
}
const dropPending = (host: Host, uid: string): void => {
  pendingOf.get(host)?.delete(uid)
}

/**
 * Writes down the ends that could not be written when they came: the disk was full, and nothing else would tell of them
 * again.
 */
export const recordPendingEnds = async (host: Host): Promise<void> => {
  for (const [uid, { machine, end }] of pendingOf.get(host) ?? []) {
    await host.vms.queue
      .run(uid, async () => {
        const row = byUid(host.store, uid)
        const isIts = row !== undefined && !host.vms.live.has(uid) && isDeepStrictEqual(row.boot.machine, machine)
        if (isIts) writeEnd(host, uid, end)
        dropPending(host, uid)
        if (isIts) await removeIfWanted(host, uid)
      })
      .catch((error: unknown) => {
        host.log.debug({ uid, reasons: chain(error) }, 'an end is still not recorded')
      })
  }
}

/** Gives the same end, or the limit of memory where the kernel has killed for it. */
const killedForMemory = (host: Pick<Host, 'daemon'>, row: VmRow, end: End): End => {
  if (end.reason !== 'killed' && end.reason !== 'failed') return end
  if ((cgroupUsage(cgroupOf(host, row.uid)).oomKills ?? 0) === 0) return end
  const limit = row.memoryMb + MEMORY_OVERHEAD_MIB
  return {
    ...end,
    reason: 'failed',
    message: `the kernel killed it, since it took more than the ${limit} MiB of memory that it may (${row.memoryMb} of the guest and ${MEMORY_OVERHEAD_MIB} beside)`,
  }
}

/** Tells how an end that is no crash came about. */
const ended = (end: End): string => {
  switch (end.reason) {
    case 'poweroff':
      return 'the guest powered off'
    case 'reboot':
      return 'the guest rebooted'
    default:
      return 'the machine was ended'
  }
}

const crashed = (end: End): string => {
  const why = end.message === '' ? '' : `: ${end.message}`
  switch (end.reason) {
    case 'panic':
      return `the guest's kernel panicked${why}`
    case 'killed':
      return `the machine was killed from outside${why}`
    default:
      return `the machine ended${why}`
  }
}
