import { rmSync } from 'node:fs'
import type { Host, MachineHost } from '../../host.ts'
import type { VmRow } from '../../store/schema.ts'
import type { LiveVm } from './live.ts'
import { unmakeParts } from './parts.ts'
import { pathsOf } from '../row/layout.ts'

/** Removes the folder in which the sockets of a machine stand. */
export const removeRuntimeFolder = (host: Pick<Host, 'config'>, row: VmRow): void => {
  rmSync(pathsOf(host.config, row).run, { recursive: true, force: true })
}

/** Removes what a vm has of the host only while it has a machine: its parts, and the folder of its sockets. */
export const removeRuntime = async (host: MachineHost, row: VmRow): Promise<void> => {
  try {
    await unmakeParts(host, row)
  } finally {
    removeRuntimeFolder(host, row)
  }
}

/** Forgets a live vm and closes what the daemon holds of it; the machine is not touched. */
export const closeLive = (host: Pick<Host, 'vms'>, live: LiveVm): void => {
  if (host.vms.live.get(live.uid) === live) host.vms.live.delete(live.uid)
  live.close()
}

/**
 * Ends a boot from outside: every process, socket and part of the vm's machine goes. Its files stay. A step that fails
 * holds up none of those behind it.
 *
 * @throws Error: the first step that failed
 */
export const tearDown = async (host: MachineHost, row: VmRow, live: LiveVm | undefined): Promise<void> => {
  if (live && host.vms.live.get(row.uid) === live) host.vms.live.delete(row.uid)
  try {
    await live?.machine?.kill()
  } finally {
    try {
      live?.close()
    } finally {
      await removeRuntime(host, row)
    }
  }
}
