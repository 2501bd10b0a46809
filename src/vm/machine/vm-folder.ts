import { mkdirSync, writeFileSync } from 'node:fs'
import type { Host } from '../../host.ts'
import { diskExhausted, isDiskFull } from '../../lib/errors.ts'
import type { VmRow } from '../../store/schema.ts'
import { pathsOf } from '../row/layout.ts'

/** Makes the folder of a new vm, with its empty logs. */
export const makeFolder = (host: Pick<Host, 'config' | 'daemon'>, row: VmRow): void => {
  const at = pathsOf(host.config, row)
  mkdirSync(at.folder, { recursive: true, mode: 0o700 })
  for (const log of [at.consoleLog, at.vmmLog]) writeFileSync(log, '', { flag: 'a', mode: 0o600 })
  host.daemon.step('folder-made')
}

/** Turns what went wrong while a vm's disk was made into a fault, where it has one. */
/** Turns what went wrong while a vm's disk was made into a fault, where it has one. */
export const diskFault = (error: unknown): unknown =>
  isDiskFull(error) ? diskExhausted({ reason: 'the disk of the vm does not fit', problem: 'no_space' }, error) : error
