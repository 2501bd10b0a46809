import type { Host, Vms } from '../../host.ts'
import { sleep } from '../../lib/wait.ts'
import type { VmRow } from '../../store/schema.ts'
import { removeIfWanted } from './end.ts'
import { byUid } from '../row/lookup.ts'
import { change, move } from '../row/moves.ts'

/*
 * A guest reboots as often as it likes, and each time costs the host a VMM, synced writes and events. One that does so again and again has
 * to wait longer each time, and in the end is taken for what it is: a crash loop.
 */

/** A boot that lasted so long is none of a loop. */
const STEADY_MS = 60_000
/** How long the second reboot of a loop waits; each one after it twice as long, up to a minute. The first waits for nothing. */
const PAUSE_MS = 1000
const PAUSE_MS_MAX = 60_000
/** Reboots of a loop, after which its vm is taken for crashed. */
export const REBOOTS_MAX = 10

/** Quick reboots in a row, by uid. */
const counts = new WeakMap<Vms, Map<string, number>>()

const countsOf = (vms: Vms): Map<string, number> => {
  const found = counts.get(vms) ?? new Map<string, number>()
  counts.set(vms, found)
  return found
}

/** Counts a reboot after a boot of so many ms; gives how long the next boot waits, undefined where there is none any more. */
export const pauseBefore = (vms: Vms, uid: string, ranMs: number): number | undefined => {
  const count = ranMs >= STEADY_MS ? 0 : (countsOf(vms).get(uid) ?? 0) + 1
  if (count === 0 || count > REBOOTS_MAX) countsOf(vms).delete(uid)
  else countsOf(vms).set(uid, count)
  if (count > REBOOTS_MAX) return undefined
  return count <= 1 ? 0 : Math.min(PAUSE_MS * 2 ** (count - 2), PAUSE_MS_MAX)
}

/**
 * Boots a vm again whose guest has asked for it; its row says `starting`. Call it in the vm's queue, which is free while the boot waits:
 * a stop or a delete has its turn at once. What fails of `boot` is in the row.
 */
export const reboot = async (
  host: Host,
  row: VmRow,
  ranMs: number,
  boot: (row: VmRow) => Promise<void>,
): Promise<void> => {
  const { uid } = row
  const pauseMs = pauseBefore(host.vms, uid, ranMs)
  if (pauseMs === undefined) {
    move(host.store, uid, 'broke', {
      statusMessage: `the guest rebooted ${REBOOTS_MAX + 1} times, each time less than ${STEADY_MS / 1000} s after its start`,
      boot: { machine: null, stoppedAt: Date.now() },
    })
    await removeIfWanted(host, uid)
    return
  }
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
