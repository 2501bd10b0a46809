import type { MachineHost } from '../../host.ts'
import type { DiskSpec, NicSpec } from '../../hypervisor/driver.ts'
import type { Undo } from '../../lib/undo.ts'
import type { VmRow } from '../../store/schema.ts'
import { cgroups } from './cgroups.ts'
import { overlayDisk, rootDisk } from './disks.ts'
import { nics } from './nics.ts'
import type { GuestHost, GuestOf, GuestShare, Part } from './part.ts'

/**
 * What a machine is assembled from. The order is that of the effects, and of the disks and cards as the guest finds
 * them.
 */
const PARTS: readonly Part[] = [rootDisk, overlayDisk, nics, cgroups]

/** The parts of one machine, put together. */
export interface Parts {
  readonly disks: readonly DiskSpec[]
  readonly nics: readonly NicSpec[]
  readonly cgroups: readonly string[]
}

/** Makes the parts of a machine; `undo` hears how each is taken back. */
export const makeParts = async (host: MachineHost, row: VmRow, undo: Undo): Promise<Parts> => {
  const made = { disks: [] as DiskSpec[], nics: [] as NicSpec[], cgroups: [] as string[] }
  for (const part of PARTS) {
    undo.push(part.name, () => part.unmake?.(host, row)) // before it is made: half of it may stand when it fails
    const share = await part.make?.(host, row)
    made.disks.push(...(share?.disks ?? []))
    made.nics.push(...(share?.nics ?? []))
    made.cgroups.push(...(share?.cgroups ?? []))
  }
  return made
}

/**
 * Takes back the parts of a machine that has gone, newest first, whoever made them. One that fails does not stop the
 * others.
 */
export const unmakeParts = async (host: MachineHost, row: VmRow): Promise<void> => {
  for (const part of PARTS.toReversed()) {
    try {
      await part.unmake?.(host, row)
    } catch (error) {
      host.log.warn({ vm: row.name, part: part.name, err: error }, 'cannot take back a part of a machine')
    }
  }
}

/** Makes what the guest's agent is told of the parts. */
export const guestShare = (host: GuestHost, vm: GuestOf): Required<GuestShare> => {
  const shares = PARTS.flatMap((part) => part.guest?.(vm, host) ?? [])
  return {
    root: shares.find((share) => share.root)?.root ?? { mode: 'initramfs', overlay_size_bytes: null },
    network: shares.find((share) => share.network)?.network ?? { mode: 'none' },
    nics: shares.flatMap((share) => share.nics ?? []),
    volumes: shares.flatMap((share) => share.volumes ?? []),
    files: shares.flatMap((share) => share.files ?? []),
  }
}
