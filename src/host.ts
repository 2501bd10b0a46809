import type { Config } from './config.ts'
import type { Hypervisors } from './hypervisor/hypervisors.ts'
import type { Images } from './image/images.ts'
import type { Kernels } from './kernel/kernels.ts'
import type { Networks } from './network/networks.ts'
import type { Snapshots } from './snapshot/snapshots.ts'
import type { Log } from './lib/log.ts'
import type { Serial } from './lib/serial.ts'
import type { Ballast } from './store/ballast.ts'
import type { Store } from './store/store.ts'
import type { LiveVm } from './vm/machine/live.ts'

/** What this daemon is, apart from what it looks after. */
export interface Daemon {
  /** Names this state folder in the environment of every process that belongs to it. */
  readonly stateId: string
  readonly version: string
  readonly startedAt: number
  /** Ends the daemon here if the configuration says so: crash tests name the step. */
  readonly step: (name: string) => void
}

/** What is in memory of the vms; the rows are the truth. */
export interface Vms {
  /** Effects of one vm run in one queue, by uid. */
  readonly queue: Serial
  /** The vms that have a machine now, by uid. */
  readonly live: Map<string, LiveVm>
}

/** What `daemon.ts` puts together once. A function takes what it uses of it. */
export interface Host {
  readonly config: Config
  readonly log: Log
  readonly daemon: Daemon
  /** Rows, with their events. */
  readonly store: Store
  /** Room on the disk for what must be written down when guests have filled it. */
  readonly ballast: Ballast
  readonly images: Images
  readonly kernels: Kernels
  readonly snapshots: Snapshots
  readonly hypervisors: Hypervisors
  readonly networks: Networks
  readonly vms: Vms
}

/** What it takes of the host to make a machine, to save it, and to end it. */
export type MachineHost = Pick<
  Host,
  'config' | 'log' | 'daemon' | 'store' | 'images' | 'kernels' | 'snapshots' | 'hypervisors' | 'networks' | 'vms'
>
