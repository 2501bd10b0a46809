import { statSync } from 'node:fs'
import type { VmStats } from '../contract/stats.ts'
import { converse } from '../guest/conversation.ts'
import { patiently } from '../guest/patience.ts'
import type { Host } from '../host.ts'
import { processUsage } from '../linux/usage.ts'
import { leasesOf } from '../network/leases.ts'
import { running } from './machine/running.ts'
import { pathsOf } from './row/layout.ts'

const ANSWER_MS = 10_000
/** Bytes of a block as stat(2) counts them. */
const STAT_BLOCK = 512

/**
 * Measures a running vm: what its agent says of the guest, and what the host spends on it. @throws `vm_wrong_state`,
 * `agent_unavailable`
 */
export const stats = async (
  host: Pick<Host, 'config' | 'networks' | 'store' | 'vms'>,
  ref: string,
): Promise<VmStats> => {
  const { row, machine } = running(host, ref, 'measure', 'read')
  const { conversation, ok } = await patiently(machine, ANSWER_MS, undefined, (signal) =>
    converse(machine, 'metrics', {}, signal),
  )
  conversation.close()
  const { uptime_ms, cpu, load, memory, disks, processes } = ok
  const { process: main, helpers } = machine.identity
  const usage = [main, ...helpers].map((one) => processUsage(one.pid))
  const sum = (values: readonly (number | undefined)[]) =>
    values.every((value) => value === undefined) ? null : values.reduce<number>((all, value) => all + (value ?? 0), 0)
  return {
    name: row.name,
    uptime_ms,
    cpu,
    load,
    memory,
    disks,
    processes,
    network: leasesOf(host.store, row.uid).flatMap((lease) => host.networks.traffic(lease) ?? []),
    host: {
      memory_bytes: sum(usage.map((one) => one?.residentBytes)),
      cpu_ms: sum(usage.map((one) => one?.cpuMs)),
      disk_bytes: (statSync(pathsOf(host.config, row).overlay, { throwIfNoEntry: false })?.blocks ?? 0) * STAT_BLOCK,
    },
  }
}
