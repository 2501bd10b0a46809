import type { Host } from '../../host.ts'
import type { DiskSpec, NicSpec } from '../../hypervisor/driver.ts'
import type { Configuration } from '../../guest/session.ts'
import type { VmSpec } from '../../contract/vm-spec.ts'
import type { VmRow } from '../../store/schema.ts'

/** What a part gives the driver. */
export interface MachineShare {
  readonly disks?: readonly DiskSpec[]
  readonly nics?: readonly NicSpec[]
  /** Folders of cgroups that every process of the machine joins. */
  readonly cgroups?: readonly string[]
}

/** What a part tells the guest's agent. */
export interface GuestShare {
  readonly root?: Configuration['root']
  readonly volumes?: Configuration['volumes']
  readonly files?: Configuration['files']
  readonly network?: Configuration['network']
  readonly nics?: Configuration['nics']
}

/** What of a vm the guest's share may depend on: it is asked before there is a row, too. */
export interface GuestOf {
  readonly name: string
  readonly machineId: string
  readonly spec: VmSpec
}

/** What a part may use of the host to say what a guest is told. */
export type GuestHost = Pick<Host, 'networks'>

/** What a part may use of the host. */
export type PartHost = Pick<Host, 'config' | 'daemon' | 'hypervisors' | 'images' | 'log' | 'networks' | 'store'>

/** What one noun brings to a machine. A noun that brings something new adds such a part, and a line in `parts.ts`. */
export interface Part {
  readonly name: string
  /** Makes what of the part stands only while the vm has a machine, and gives what the driver needs of it. */
  make?(host: PartHost, row: VmRow): MachineShare | Promise<MachineShare>
  /**
   * Takes back what `make` made. It knows it by the row alone, since an earlier daemon may have made it; twice is fine.
   */
  unmake?(host: PartHost, row: VmRow): void | Promise<void>
  guest?(vm: GuestOf, host: GuestHost): GuestShare
}
