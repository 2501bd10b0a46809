import type { Host } from '../../host.ts'
import type { End } from '../../hypervisor/driver.ts'
import type { LiveVm } from './live.ts'
import { purge } from './purge.ts'
import { removeRuntime } from './teardown.ts'
import { byUid } from '../row/lookup.ts'
import { move } from '../row/moves.ts'

/**
 * Writes down how a machine ended, then lets go of what it held: first the row, then the process (it may hold the reason for a daemon
 * that crashes right here), then sockets and cgroups. Call it in the vm's queue, once for a live vm.
 */
export const recordEnd = async (host: Host, live: LiveVm, end: End): Promise<void> => {
  host.vms.live.delete(live.uid)
  await live.drainIfConnected()
  const row = byUid(host.store, live.uid)
  if (row) {
    const stoppedAt = Date.now()
    if (row.state === 'running' && end.reason === 'reboot') {
      move(host.store, live.uid, 'rebooted', { newBoot: {}, statusMessage: 'the guest rebooted' })
    } else if (row.state === 'starting') {
      // the boot that is under way reports it
    } else if (
      end.reason === 'poweroff' ||
      end.reason === 'reboot' ||
      row.state === 'stopping' ||
      row.boot.exitCode !== null
    ) {
      if (row.state !== 'deleting') {
        move(host.store, live.uid, 'exited', {
          boot: { machine: null, stoppedAt, exitMessage: row.boot.exitMessage ?? ended(end) },
        })
      }
    } else if (row.state !== 'deleting') {
      const reason = crashed(end)
      move(host.store, live.uid, 'broke', {
        statusMessage: row.statusMessage ?? reason,
        boot: { machine: null, stoppedAt, exitMessage: row.boot.exitMessage ?? reason },
      })
    }
  }
  host.daemon.step('end-recorded')
  await live.machine?.kill()
  live.close()
  if (!row) return
  await removeRuntime(host, row)
  const after = byUid(host.store, live.uid)
  if (after?.spec.policy.auto_remove && (after.state === 'stopped' || after.state === 'crashed')) {
    move(host.store, live.uid, 'delete')
    await purge(host, live.uid)
  }
}

/** How an end that is no crash came about. */
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
