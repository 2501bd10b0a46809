import { closeSync, fstatSync, openSync } from 'node:fs'
import type { Host } from '../../host.ts'
import { punchHole } from '../../linux/file.ts'
import { pathsOf } from '../row/layout.ts'
import { messageOf } from '../../lib/thrown.ts'
import { byUid } from '../row/lookup.ts'

/** Holes are punched in whole blocks of this many bytes. */
const GRAIN = 1_048_576

/**
 * Gives back the disk of what is old in the consoles of running vms: the VMM appends for ever and holds the file open,
 * so its old part becomes a hole. The file's length keeps growing, its blocks do not.
 */
export const punchConsoles = (host: Pick<Host, 'config' | 'log' | 'store' | 'vms'>): void => {
  const keep = host.config.log_max_mb * 2 ** 20
  for (const live of host.vms.live.values()) {
    const row = byUid(host.store, live.uid)
    if (!row) continue
    const at = pathsOf(host.config, row)
    for (const path of [at.consoleLog, at.vmmLog]) {
      let fd: number
      try {
        fd = openSync(path, 'r+')
      } catch {
        continue
      }
      try {
        const { size, blocks } = fstatSync(fd)
        if (blocks * 512 <= keep + 4 * GRAIN) continue
        punchHole(fd, 0, Math.floor((size - keep) / GRAIN) * GRAIN)
      } catch (error) {
        host.log.debug({ path, reason: messageOf(error) }, 'cannot give back the old part of a log')
      } finally {
        closeSync(fd)
      }
    }
  }
}
