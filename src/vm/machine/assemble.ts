import type { Config } from '../../config.ts'
import type { VmSpec } from '../../contract/vm-spec.ts'
import type { MachineHost } from '../../host.ts'
import type { DiskRate, HypervisorDriver, MachineSpec } from '../../hypervisor/driver.ts'
import { parseRate } from '../../lib/bytes.ts'
import type { Undo } from '../../lib/undo.ts'
import type { VmRow } from '../../store/schema.ts'
import { jailOf } from './jail.ts'
import { makeParts } from './parts.ts'
import { pathsOf } from '../row/layout.ts'

/**
 * Writes the kernel command line of a machine: console, our init, no pause on panic (`-no-reboot` ends the machine
 * there).
 */
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

/**
 * Assembles a machine of its parts: what each of them needs of the host is made, and `undo` hears how it is taken back.
 * What is the vm's own (kernel, processors, memory, logs, jail) is added here.
 */
export const assemble = async (
  host: MachineHost,
  row: VmRow,
  driver: HypervisorDriver,
  undo: Undo,
): Promise<MachineSpec> => {
  const at = pathsOf(host.config, row)
  return {
    mark: `${host.daemon.stateId}/${row.uid}`,
    uuid: uuidOf(row.machineId),
    folder: at.run,
    kernel:
      driver.boots === 'vmlinux'
        ? await host.kernels.vmlinux(row.kernelDigest)
        : host.kernels.imageOf(row.kernelDigest),
    initramfs: await host.kernels.initramfs(row.kernelDigest),
    cmdline: cmdline(row.spec.compute.kernel_cmdline),
    vcpus: row.cpuCores,
    memoryMib: row.memoryMb,
    cid: row.cid,
    forkable: row.spec.compute.forkable,
    diskRate: diskRateOf(host.config, row.spec.storage),
    consoleLog: at.consoleLog,
    consoleLogMib: host.config.log_max_mb,
    vmmLog: at.vmmLog,
    jail: jailOf(host.config, row),
    ...(await makeParts(host, row, undo)),
  }
}

/** A disk that is slower than this lets no guest boot. */
const BYTES_PER_S_MIN = 65_536

/** Tells how fast the vm's own disks may be: as the vm says, and as the daemon does where it says nothing. */
export const diskRateOf = (
  config: Pick<Config, 'disk_io_bps' | 'disk_flushes_per_s'>,
  { disk_io_bps: said }: Pick<VmSpec['storage'], 'disk_io_bps'>,
): DiskRate => {
  const own = typeof said === 'number' ? said : (parseRate(said) ?? 0)
  return {
    bytesPerS: own === 0 ? config.disk_io_bps : Math.max(own, BYTES_PER_S_MIN),
    flushesPerS: config.disk_flushes_per_s,
  }
}

/** Writes 32 hex digits as a UUID. */
const uuidOf = (hex: string): string =>
  `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20, 32)}`
