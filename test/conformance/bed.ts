import { readdirSync, readFileSync } from 'node:fs'
import type { HypervisorDriver, MachineSpec } from '../../src/hypervisor/driver.ts'

/** What a driver's test brings: the driver, and machines that it can start. */
export interface Bed extends AsyncDisposable {
  readonly driver: HypervisorDriver
  /** A module whose default is the same driver, for a daemon in a process of its own. */
  readonly module: string
  /** A new machine's spec, its folder and files made. */
  spec(): Promise<MachineSpec>
}

/**
 * The processes of a machine, by the mark in their environment: what a crash of the daemon leaves is found by nothing
 * else.
 */
export const marked = (mark: string): number[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0').includes(`AERIE_MACHINE=${mark}`)
      } catch {
        return false
      }
    })

export const until = async (condition: () => boolean, what: () => string, ms = 10_000): Promise<void> => {
  for (const end = Date.now() + ms; !condition(); await Bun.sleep(10))
    if (Date.now() > end) throw new Error(`not within ${ms} ms: ${what()}`)
}
