import { rmSync } from 'node:fs'
import type { Host } from '../../host.ts'
import type { VmRow } from '../../store/schema.ts'
import { removeCgroups } from './cgroups.ts'
import { pathsOf } from '../row/layout.ts'

/** Removes what a vm has of the host only while it has a machine: its cgroups, and its runtime folder with the sockets. */
export const removeRuntime = async (host: Host, row: VmRow): Promise<void> => {
  await removeCgroups(host, row)
  rmSync(pathsOf(host.config, row).run, { recursive: true, force: true })
}
