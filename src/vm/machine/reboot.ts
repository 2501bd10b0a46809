import type { MachineHost } from '../../host.ts'
import { sleep } from '../../lib/promise.ts'
import type { VmRow } from '../../store/schema.ts'
import { removeIfWanted } from './end.ts'
import { pauseBefore, pauseOf, REBOOTS_MAX, STEADY_MS } from './reboot-pace.ts'
import { byUid } from '../row/lookup.ts'
import { change, move } from '../row/moves.ts'

/**
 * Boots a vm again whose guest has asked for it; its row says `starting`. Call it in the vm's queue, which is free
 * while the boot waits: a stop or a delete has its turn at once. What fails of `boot` is in the row.
 */
export const reboot = async (
  host: MachineHost,
  row: VmRow,
  ranMs: number,
  boot: (row: VmRow) => Promise<void>,
): Promise<void> => {
  const { uid } = row
  const pauseMs = pauseBefore(host.store, uid, ranMs)
  if (pauseMs === undefined) {
    move(host.store, uid, 'broke', {
      statusMessage: `the guest rebooted ${REBOOTS_MAX + 1} times, each time less than ${STEADY_MS / 1000} s after its start`,
      boot: { machine: null, stoppedAt: Date.now() },
    })
    await removeIfWanted(host, uid)
    return
  }
  await bootAfter(host, row, pauseMs, boot)
}

/** Goes on with a reboot whose daemon went away before the guest had a machine again. Call it in the vm's queue. */
export const resumeReboot = (host: MachineHost, row: VmRow, boot: (row: VmRow) => Promise<void>): Promise<void> =>
  bootAfter(host, row, pauseOf(row.quickReboots), boot)

const bootAfter = async (
  host: MachineHost,
  row: VmRow,
  pauseMs: number,
  boot: (row: VmRow) => Promise<void>,
): Promise<void> => {
  const { uid } = row
  if (pauseMs === 0) {
    await boot(row).catch(() => undefined)
    return
  }
  change(host.store, uid, {
    statusMessage: `the guest rebooted again: it starts in ${pauseMs / 1000} s`,
  })
  void sleep(pauseMs)
    .then(() =>
      host.vms.queue.run(uid, async () => {
        const now = byUid(host.store, uid)
        const isIts = now?.state === 'starting' && now.boot.startedAt === row.boot.startedAt
        if (!isIts || host.vms.live.has(uid)) return
        change(host.store, uid, { statusMessage: 'the guest rebooted', boot: { startedAt: Date.now() } })
        await boot(byUid(host.store, uid) ?? now).catch(() => undefined)
      }),
    )
    .catch((error: unknown) => {
      host.log.error({ vm: row.name, err: error }, 'cannot boot a vm again')
    })
}
