import { rmSync } from 'node:fs'
import type { Host } from '../host.ts'
import type { VmRow } from '../store/schema.ts'
import { removeCgroups } from './cgroups.ts'
import { places } from './places.ts'

/** Removes what a vm has of the host only while it has a machine: its cgroups, and its runtime folder with the sockets. */
export const release = async (host: Host, row: VmRow): Promise<void> => {
  await removeCgroups(host, row)
  rmSync(places(host.config, row).run, { recursive: true, force: true })
}
