import type { Host } from '../../host.ts'
import type { Halt, Machine } from '../../hypervisor/driver.ts'
import { chain } from '../../lib/fault.ts'
import { setClock } from './clock.ts'
import type { LiveVm } from './live.ts'
import { pathsOf } from '../row/layout.ts'
import { byUid } from '../row/lookup.ts'
import { move } from '../row/moves.ts'

/*
 * A guest whose disk cannot be written, since the host's is full, is halted by its machine and loses nothing. The row
 * says `paused` with the reason from then on, and the guest goes on by itself as soon as there is room.
 */

/** How long a guest may take to be told to go on. */
const RESUME_MS = 10_000
/** A guest that is halted again within this time had no use of going on: it waits twice as long the next time. */
const AGAIN_MS = 10_000
const WAIT_MS_MAX = 60_000

/** What of a halt is in memory: it belongs to one boot, as all of a live vm does. */
export class HaltState {
  /** Why the guest stands still now. */
  halt: Halt | undefined
  /** The row says `paused` for this reason, and nobody else asked for it. */
  waits = false
  #haltedAt = 0
  #resumedAt = 0
  #pauseMs = 0

  halted(now = Date.now()): void {
    this.#haltedAt = now
    const again = now - this.#resumedAt < AGAIN_MS
    this.#pauseMs = again ? Math.min(WAIT_MS_MAX, Math.max(1000, this.#pauseMs * 2)) : 0
    this.waits = true
  }
  resumed(now = Date.now()): void {
    this.#resumedAt = now
    this.waits = false
  }
  mayResume(now = Date.now()): boolean {
    return this.waits && now - this.#haltedAt >= this.#pauseMs
  }
}

const sayHalt = ({ noSpace, message }: Halt): string =>
  noSpace
    ? 'the disk of the host is full: the guest stands still, and goes on when there is room'
    : `a disk of the host failed: ${message}`

/** Writes down whenever a machine halts its guest by itself, and when the guest goes on. */
export const watchHalts = (host: Pick<Host, 'log' | 'store' | 'vms'>, live: LiveVm, machine: Machine): void => {
  machine.onHalt?.((halt) => {
    live.halts.halt = halt
    void host.vms.queue
      .run(live.uid, () => {
        record(host, live)
        return Promise.resolve()
      })
      .catch((error: unknown) => {
        host.log.error({ vm: live.name, reasons: chain(error) }, 'cannot record that a guest was halted')
      })
  })
}

/** Makes the row say what the machine said last. Call it in the vm's queue. */
const record = (host: Pick<Host, 'store' | 'vms'>, live: LiveVm): void => {
  if (host.vms.live.get(live.uid) !== live) return
  const row = byUid(host.store, live.uid)
  const { halts } = live
  if (halts.halt && row?.state === 'running') {
    const statusMessage = sayHalt(halts.halt)
    move(host.store, live.uid, 'halted', { statusMessage })
    halts.halted()
  } else if (halts.halt && row?.state === 'paused' && row.statusMessage !== null && !halts.waits) {
    halts.halted() // by a machine of the daemon before this one
  } else if (!halts.halt && halts.waits) {
    if (row?.state === 'paused') move(host.store, live.uid, 'went_on')
    halts.resumed()
  }
}

/** Lets one halted guest go on, if there is room for what it writes. */
export const resumeHalted = async (
  host: Pick<Host, 'store' | 'vms' | 'ballast' | 'config'>,
  live: LiveVm,
): Promise<void> => {
  if (!live.halts.mayResume()) return
  await host.vms.queue.run(live.uid, async () => {
    const row = byUid(host.store, live.uid)
    if (row?.state !== 'paused' || !live.halts.mayResume() || !live.machine) return
    if (!(await host.ballast.leavesRoom(pathsOf(host.config, row).folder))) return
    await live.machine.resume(AbortSignal.timeout(RESUME_MS))
    void setClock(live)
    record(host, live)
  })
}

/** Lets every halted guest go on for which there is room; no event tells of room. */
export const resumeAllHalted = async (host: Host): Promise<void> => {
  await Promise.all(
    [...host.vms.live.values()].map((live) =>
      resumeHalted(host, live).catch((error: unknown) => {
        host.log.debug({ vm: live.name, reasons: chain(error) }, 'a halted guest does not go on')
      }),
    ),
  )
}
