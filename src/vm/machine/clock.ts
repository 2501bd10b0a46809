import type { Host } from '../../host.ts'
import { all } from '../row/lookup.ts'
import type { LiveVm } from './live.ts'

/** How long an agent may take to set its clock; nobody fails because of one that does not. */
const SET_MS = 2000
/** The host's clock and the time that passed differ by more than this: it slept, or its clock was set. */
const JUMP_MS = 200

/** Sets the wall clock of a guest that goes on after its processors halted: their time stood still meanwhile. */
export const setClock = async (live: Pick<LiveVm, 'session'>): Promise<void> => {
  try {
    // Read when the agent is there to be told: it may have to connect first.
    await live.session.request('time', () => ({ time_ns: Date.now() * 1_000_000 }), AbortSignal.timeout(SET_MS))
  } catch {
    // A guest without an agent has nobody who sets its clock.
  }
}

/** Sets the clocks of all guests that run. */
export const setClocks = async (host: Pick<Host, 'store' | 'vms'>): Promise<void> => {
  await Promise.all(
    all(host.store, 'running').map(async ({ uid }) => {
      const live = host.vms.live.get(uid)
      if (live) await setClock(live)
    }),
  )
}

/** Compares the host's wall clock with the time that passed, of which a suspended host sees none. */
export class ClockWatch {
  readonly #read: () => { readonly wallMs: number; readonly passedMs: number }
  #offset: number

  constructor(read = () => ({ wallMs: Date.now(), passedMs: performance.now() })) {
    this.#read = read
    this.#offset = this.#now()
  }

  #now(): number {
    const { wallMs, passedMs } = this.#read()
    return wallMs - passedMs
  }

  /** Tells whether the clock jumped since this was last true. */
  hasJumped(): boolean {
    const now = this.#now()
    if (Math.abs(now - this.#offset) < JUMP_MS) return false
    this.#offset = now
    return true
  }
}
