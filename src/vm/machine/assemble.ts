import type { Host } from '../../host.ts'
import type { HypervisorDriver, MachineSpec } from '../../hypervisor/driver.ts'
import type { VmRow } from '../../store/schema.ts'
import { makeCgroups } from './cgroups.ts'
import { jailOf } from './jail.ts'
import { pathsOf } from '../row/layout.ts'

/** The machine's kernel command line: console, our init, no pause on panic (`-no-reboot` ends the machine there). */
const cmdline = (extra: string): string =>
  [
    'console=ttyS0',
    'panic=-1',
    'reboot=t',
    'quiet',
    'loglevel=4',
    'random.trust_cpu=on',
    'tsc=reliable',
    'no_timer_check',
    extra,
  ]
    .filter((word) => word !== '')
    .join(' ')

export const machineSpec = async (host: Host, row: VmRow, driver: HypervisorDriver): Promise<MachineSpec> => {
  const at = pathsOf(host.config, row)
  const image = host.images.byDigest(row.imageDigest)
  return {
    mark: `${host.stateId}/${row.uid}`,
    uuid: uuidOf(row.machineId),
    folder: at.run,
    kernel:
      driver.boots === 'vmlinux'
        ? await host.kernels.vmlinux(row.kernelDigest)
        : host.kernels.imageOf(row.kernelDigest),
    initramfs: await host.kernels.initramfs(row.kernelDigest),
    cmdline: cmdline(row.spec.kernel_cmdline),
    vcpus: row.cpuCores,
    memoryMib: row.memoryMb,
    disks: [
      { path: host.images.pathOf(image), readOnly: true, serial: 'root' },
      { path: at.overlay, readOnly: false, serial: 'overlay' },
    ],
    nic: row.spec.network.mode === 'user' ? { kind: 'user', mac: row.mac } : undefined,
    cid: row.cid,
    forkable: row.spec.forkable ?? false,
    consoleLog: at.consoleLog,
    consoleLogMib: host.config.log_max_mb,
    vmmLog: at.vmmLog,
    jail: jailOf(host.config, row),
    cgroups: makeCgroups(host, row),
  }
}

/** 32 hex digits as a version 4 UUID's text. */
const uuidOf = (hex: string): string =>
  `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20, 32)}`
