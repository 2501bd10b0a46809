import type { Wall } from '../contract/wall.ts'
import type { Duplex } from 'node:stream'
import type { Config } from '../config.ts'
import type { HypervisorName } from '../contract/hypervisor.ts'
import type { Check } from '../contract/system.ts'
import type { KvmSupport } from '../linux/kvm.ts'

/*
 * The life of a machine
 *
 * A *machine* is one VMM process, with its helpers (QEMU needs a vsock backend), that runs one guest once.
 *
 *   start ──▶ running ──pause──▶ paused ──resume──▶ running
 *                │                                     │
 *                └── the guest ends (or is killed) ────┴──▶ ended ──kill──▶ gone
 *
 * - `start` resolves when the VMM runs the guest's first instruction; the guest is not ready yet: its agent says so
 *   over vsock.
 * - A machine outlives the daemon. `identity` is all that `adopt` needs; the caller keeps it in its row before it
 *   relies on it.
 * - When the guest ends, `ended` resolves with the reason. The process may then still be there, holding that reason for
 *   a daemon that was not looking; `kill` lets it go. The caller records the reason first and kills afterwards.
 * - `adopt` of a process that is gone, or of another one that got its number, gives undefined and touches nothing.
 * - A guest's reboot ends the machine with reason `reboot`; the caller starts a new one.
 * - A paused machine can be *saved*: all that it is goes into two files, and `restore` makes paused machines of them,
 *   each on its own disks, CID and folder. In such a machine every vsock connection of before is reset. Who it is must
 *   be told to its agent after `resume`. Standby is pause, `snapshot`, `kill`; a clone is pause, `fork`, `resume` of
 *   the mother and `restore` of the child.
 *
 * Two more words: the *folder* is a short path of the machine's own where its sockets stand, made and removed by the caller;
 * *vsock* is a Unix socket in it with Firecracker's dialect (`CONNECT <port>\n` → `OK <n>\n`); what the guest connects to, port p,
 * arrives at the Unix socket `vsock_<p>` beside it, where the caller listens before `start`.
 */

/** A disk of a machine: a raw file of this host, as a virtio block device. */
export interface DiskSpec {
  readonly path: string
  readonly readOnly: boolean
  /** What the guest finds it by: `root`, `overlay`, `vol<n>`; at most 20 bytes (virtio 1.2, section 5.2.6). */
  readonly serial: string
}

/**
 * What a guest's network card leads to: `user` is the VMM's own network, through the host's sockets; `tap` a link of
 * the host's.
 */
export type NicKind = 'user' | 'tap'

/** One network card. */
export type NicSpec =
  | { readonly kind: 'user'; readonly mac: string }
  | {
      readonly kind: 'tap'
      readonly mac: string
      readonly mtu: number
      /**
       * Makes the link and opens that many of its queues, whose packets carry a `virtio_net_hdr_v1`. The descriptors
       * are the driver's to close once the VMM has its own; the link goes with the last of them.
       */
      open(queues: number): number[]
    }

/** Who a machine runs as, and the limits that its cgroup holds it to; absent for a daemon without root. */
export interface JailSpec {
  readonly uid: number
  readonly gid: number
  readonly groups: readonly number[]
}

/** What a machine's writable disks may do together; 0 is no limit. A burst of some seconds comes on top. */
export interface DiskRate {
  readonly bytesPerS: number
  /** A driver that cannot limit them leaves them alone. */
  readonly flushesPerS: number
}

/** What a VMM needs to know: paths and numbers, no rows, no HTTP. */
export interface MachineSpec {
  /** Names the machine in cgroups and in the environment of its processes: `<state id>/<vm uid>`. */
  readonly mark: string
  readonly uuid: string
  readonly folder: string
  readonly kernel: string
  readonly initramfs: string
  readonly cmdline: string
  readonly vcpus: number
  readonly memoryMib: number
  readonly disks: readonly DiskSpec[]
  readonly diskRate: DiskRate
  /** Network cards, in the order in which the guest finds them. */
  readonly nics: readonly NicSpec[]
  /** 3 or more: virtio 1.2, section 5.10.4. */
  readonly cid: number
  /** Takes the serial console; made by the caller, appended to by the VMM. */
  readonly consoleLog: string
  /**
   * Keep at most this much of `consoleLog`, in MiB. A VMM that cannot trim it only appends; the caller then punches out
   * the old part.
   */
  readonly consoleLogMib: number
  /**
   * Memory that clones can share: no copy at a fork, and smaller pages where the host gives shared memory no large
   * ones.
   */
  readonly forkable: boolean
  /** Takes what the VMM itself says on stdout and stderr. */
  readonly vmmLog: string
  readonly jail: JailSpec | undefined
  /** Folders of cgroups that exist, joined by every process of the machine. */
  readonly cgroups: readonly string[]
}

/** One process, and never another that got its number later. */
export interface ProcessId {
  readonly pid: number
  /** Field 22 of /proc/PID/stat, proc(5): clock ticks after boot. */
  readonly startTime: string
}

/** All that a later daemon needs to find a machine again; it is kept in the store. */
export interface MachineIdentity {
  readonly bootId: string
  readonly process: ProcessId
  readonly helpers: readonly ProcessId[]
  readonly folder: string
  readonly uuid: string
  /** Absent for a machine of a release that did not say. */
  readonly walls?: readonly Wall[]
}

/** Lists the walls that a machine has of its specification, whatever its driver. */
export const commonWalls = (spec: Pick<MachineSpec, 'jail' | 'cgroups'>): Wall[] => [
  ...(spec.jail ? (['own-user'] as const) : []),
  ...(spec.cgroups.length > 0 ? (['cgroup'] as const) : []),
]

export type EndReason = 'poweroff' | 'reboot' | 'panic' | 'killed' | 'failed' | 'gone'

/** `code` is the VMM's own exit code; null where the process is no child of ours or has not exited. */
export interface End {
  readonly reason: EndReason
  readonly code: number | null
  readonly message: string
}

/**
 * A machine as it was at one moment: two open files, in the driver's own format. A restore reads them and never changes
 * them; they must not change or shrink while a machine stands on them, and may be unlinked.
 */
export interface Saved {
  /** Processors and devices. */
  readonly state: number
  /** The guest's memory. */
  readonly memory: number
}

/** Why a machine halted its guest by itself: a request to a disk failed on this host. `resume` tries it again. */
export interface Halt {
  /** The host's disk is full. */
  readonly noSpace: boolean
  readonly message: string
}

/** One VMM process. Every call is idempotent, and one that rejects has changed nothing. */
export interface Machine {
  readonly identity: MachineIdentity
  readonly ended: Promise<End>
  /** Unix socket of the serial console: bytes both ways, one client at a time. */
  readonly consoleSocket: string
  /** Opens a stream to a vsock port of the guest. @throws `agent_unavailable` where nobody listens there */
  connect(port: number, signal: AbortSignal): Promise<Duplex>
  pause(signal: AbortSignal): Promise<void>
  /** Lets the processors run on; the agent of a guest that was restored can be reached when it resolves. */
  resume(signal: AbortSignal): Promise<void>
  state(signal: AbortSignal): Promise<'running' | 'paused' | 'ended'>
  powerButton(signal: AbortSignal): Promise<void>
  /**
   * Raises the links of the cards of a machine that was restored, and whose guest knows by now who it is. Absent: they
   * are up all the time.
   */
  linkUp?(signal: AbortSignal): Promise<void>
  /**
   * Writes a paused machine into two new, empty files; both have reached the disk when it resolves. Absent: the driver
   * cannot.
   */
  snapshot?(into: Saved, signal: AbortSignal): Promise<void>
  /**
   * The same for clones that are made at once: memory stays where it is, for all of them to share, where that can be;
   * else it goes into `into.memory`. What it resolves with is the caller's to close. Absent: the driver has no better
   * way than `snapshot`.
   */
  fork?(into: Saved, signal: AbortSignal): Promise<Saved>
  /**
   * Calls back whenever the machine halts its guest by itself, now too where it has, and with undefined when the guest
   * goes on. One caller. Absent: the driver's guests get the error instead.
   */
  onHalt?(heard: (halt: Halt | undefined) => void): void
  /** Ends every process of the machine; resolves when they have gone. */
  kill(): Promise<void>
}

/** One hypervisor on this host: what it can do, and how a machine of it is begun and found again. */
export interface HypervisorDriver {
  readonly name: HypervisorName
  /** The kinds of network card that it can give a guest. */
  readonly nics: readonly NicKind[]
  /**
   * Its machines run nothing of a guest's, so no cgroup holds them. Absent: every process of a machine joins
   * `MachineSpec.cgroups`.
   */
  readonly unlimited?: true
  /** What `MachineSpec.kernel` must be; absent: a bzImage or a vmlinux. */
  readonly boots?: 'vmlinux'
  /** Starts a machine. @throws `hypervisor_unavailable`, `machine_failed` */
  start(spec: MachineSpec, signal: AbortSignal): Promise<Machine>
  /**
   * A paused machine of what was saved, of the same shape (processors, memory, disks). Absent: the driver cannot.
   *
   * @throws `hypervisor_unavailable`, `machine_failed` (also: what was saved is not whole, or is of another shape,
   * version or processor)
   */
  restore?(spec: MachineSpec, from: Saved, signal: AbortSignal): Promise<Machine>
  /** Finds a machine that outlived the daemon; undefined where it is gone. */
  adopt(identity: MachineIdentity, signal: AbortSignal): Promise<Machine | undefined>
}

/** What a driver is offered of the host when it is asked whether it can run there. */
export interface Ground {
  readonly config: Config
  readonly kvm: KvmSupport
  /** What guests shall run on: the configuration's word, or what the host has. */
  readonly accelerator: 'kvm' | 'tcg'
}

/** What runs the guest's instructions. */
export interface Accelerator {
  readonly accelerator: 'kvm' | 'tcg' | 'none'
  /** One sentence for people: why this one. */
  readonly reason: string
}

/** What a driver answers: itself, or why this host cannot run it. Nothing: it is not to be spoken of here. */
export type Found = { readonly driver: HypervisorDriver } | { readonly lacks: string } | undefined

/** One line of `daemon.ts`: a driver before the host was asked whether it can run there. */
export interface DriverOffer {
  readonly name: HypervisorName
  /** Never the default: used where it was asked for by name. */
  readonly onRequest?: true
  /** What its guests run on, where that is not the ground's. */
  readonly accelerator?: Accelerator
  find(ground: Ground): Found
  /** Why it should not be the default though it is there; asked only where another driver could be. */
  unfit?(): string | undefined
  /** What `aerie doctor` says of it. `another` is whether some other driver can run guests here. */
  check?(ground: Ground, another: boolean): readonly Check[] | Promise<readonly Check[]>
}
