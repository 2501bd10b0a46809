import { randomUUID } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { HypervisorDriver, MachineSpec } from '../../src/hypervisor/driver.ts'
import type { Bed } from '../conformance/hypervisor.ts'

/** Machines in folders of one bed, gone with it. `files` makes what a machine boots from, each in its own folder. */
export const bedOf = (
  driver: HypervisorDriver,
  module: string,
  files: (folder: string) => Promise<Pick<MachineSpec, 'kernel' | 'initramfs' | 'disks'>>,
  close: () => void = () => undefined,
): Bed => {
  const folder = mkdtempSync('/tmp/aerie-h-')
  const state = randomUUID().replaceAll('-', '').slice(0, 16)
  let count = 0
  return {
    driver,
    module,
    spec: async () => {
      const id = ++count
      const at = join(folder, String(id))
      const run = join(at, 'run')
      mkdirSync(run, { recursive: true })
      const consoleLog = join(at, 'console.log')
      const vmmLog = join(at, 'vmm.log')
      for (const log of [consoleLog, vmmLog]) writeFileSync(log, '')
      return {
        mark: `${state}/vm_${id}`,
        uuid: randomUUID(),
        folder: run,
        cmdline: 'console=ttyS0 panic=-1 reboot=t',
        vcpus: 1,
        memoryMib: 192,
        diskRate: { bytesPerS: 256 * 2 ** 20, flushesPerS: 500 },
        nics: [],
        cid: 100 + id,
        forkable: false,
        consoleLog,
        consoleLogMib: 1,
        vmmLog,
        jail: undefined,
        cgroups: [],
        ...(await files(at)),
      }
    },
    [Symbol.asyncDispose]: () => {
      close()
      rmSync(folder, { recursive: true, force: true })
      return Promise.resolve()
    },
  }
}
