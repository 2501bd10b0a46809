import { hasCode } from '../../linux/errno.ts'
import { changedTable, hearChanges, socketNumber } from '../../linux/netlink/nft.ts'
import { Netlink, PROTOCOL } from '../../linux/netlink/netlink.ts'

const LOOK_MS = 250
/** Two that mend one table in turn are to leave the host some peace. */
const MENDED_MS_MIN = 1000
const MENDED_MS_MAX = 60_000

/** Hears what others change in a table that the kernel does not keep for us. */
export class Watch implements Disposable {
  readonly #netlink: Netlink
  readonly #table: string
  readonly #own: number
  readonly #mend: () => void
  readonly #timer: ReturnType<typeof setInterval>
  #isChanged = false
  #mendedAtMs = 0
  #pauseMs = MENDED_MS_MIN

  private constructor(netlink: Netlink, table: string, own: number, mend: () => void) {
    this.#netlink = netlink
    this.#table = table
    this.#own = own
    this.#mend = mend
    this.#timer = setInterval(() => this.#look(), LOOK_MS)
    this.#timer.unref()
  }

  /** Calls `mend` when another socket than `except` changed the table. */
  static open(
    where: { readonly table: string; readonly netns?: number | undefined; readonly except: Netlink },
    mend: () => void,
  ): Watch {
    const netlink = Netlink.open(PROTOCOL.netfilter, where.netns)
    hearChanges(netlink)
    return new Watch(netlink, where.table, socketNumber(where.except), mend)
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
    this.#netlink[Symbol.dispose]()
  }

  #look(): void {
    if (this.#hear()) this.#isChanged = true
    const now = Date.now()
    if (!this.#isChanged || now - this.#mendedAtMs < this.#pauseMs) return
    this.#pauseMs =
      now - this.#mendedAtMs < 2 * this.#pauseMs ? Math.min(2 * this.#pauseMs, MENDED_MS_MAX) : MENDED_MS_MIN
    this.#isChanged = false
    this.#mendedAtMs = now
    this.#mend()
  }

  /** Reads all there is, and says whether others changed the table, or may have. */
  #hear(): boolean {
    let isChanged = false
    for (;;) {
      try {
        for (const one of this.#netlink.receive())
          if (one.socket !== this.#own && one.socket !== 0 && changedTable(one)?.name === this.#table) isChanged = true
      } catch (error) {
        if (hasCode(error, 'EAGAIN')) return isChanged
        if (!hasCode(error, 'ENOBUFS')) throw error
        isChanged = true
      }
    }
  }
}
