import type { Config } from './config.ts'
import type { Hypervisors } from './hypervisor/hypervisors.ts'
import type { Images } from './image/images.ts'
import type { Kernels } from './kernel/kernels.ts'
import type { Snapshots } from './snapshot/snapshots.ts'
import type { Log } from './lib/log.ts'
import type { Serial } from './lib/serial.ts'
import type { EventLog } from './store/events.ts'
import type { Store } from './store/store.ts'
import type { LiveVm } from './vm/machine/live.ts'

/** What `daemon.ts` puts together once and every verb takes what it uses from. */
export interface Host {
  readonly config: Config
  readonly log: Log
  readonly store: Store
  readonly events: EventLog
  readonly images: Images
  readonly kernels: Kernels
  readonly snapshots: Snapshots
  readonly hypervisors: Hypervisors
  /** Names this state folder in the environment of every process that belongs to it. */
  readonly stateId: string
  /** Effects of one vm run in one queue, by uid. */
  readonly queue: Serial
  /** The vms that have a machine now, by uid. */
  readonly live: Map<string, LiveVm>
  /** Creates by Idempotency-Key, while they run. */
  readonly creating: Map<string, Promise<unknown>>
  readonly version: string
  readonly startedAt: number
  /** For crash tests: ends the daemon here if the configuration says so. */
  readonly step: (name: string) => void
}
