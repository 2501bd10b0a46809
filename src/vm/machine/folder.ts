import { mkdirSync, writeFileSync } from 'node:fs'
import type { Host } from '../../host.ts'
import { diskExhausted } from '../../image/archive.ts'
import { hasCode } from '../../linux/errno.ts'
import type { VmRow } from '../../store/schema.ts'
import { pathsOf } from '../row/layout.ts'

/** The folder of a new vm, with its logs. */
export const makeFolder = (host: Pick<Host, 'config' | 'daemon'>, row: VmRow): void => {
  const at = pathsOf(host.config, row)
  mkdirSync(at.folder, { recursive: true, mode: 0o700 })
  for (const log of [at.consoleLog, at.vmmLog]) writeFileSync(log, '', { flag: 'a', mode: 0o600 })
  host.daemon.step('folder-made')
}

export const diskFault = (error: unknown): unknown =>
  hasCode(error, 'ENOSPC', 'EDQUOT')
    ? diskExhausted({ reason: 'the disk of the vm does not fit', problem: 'no_space' }, error)
    : error
