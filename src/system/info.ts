import { sql } from 'drizzle-orm'
import type { SystemInfo, SystemSummary } from '../contract/system.ts'
import { GENERATION } from '../guest/frames.ts'
import type { Host } from '../host.ts'
import { images, kernels, vms } from '../store/schema.ts'
import { capacity } from '../vm/row/capacity.ts'

/** Tells what this daemon is and what this host can do. */
export const info = (host: Pick<Host, 'config' | 'daemon' | 'hypervisors'>): SystemInfo => ({
  status: 'ok',
  version: host.daemon.version,
  api: 'v1',
  generation: GENERATION,
  pid: process.pid,
  uid: process.getuid?.() ?? -1,
  mode: host.config.mode,
  api_listen_addr: host.config.listen,
  api_advertise_addr: host.config.listen,
  host_ip: host.config.listen.replace(/:\d+$/, ''),
  socket: host.config.socket,
  state_dir: host.config.state,
  hypervisor: host.hypervisors.default.name,
  accelerator: host.hypervisors.default.accelerator,
  accelerator_reason: host.hypervisors.default.reason,
  cpus: host.config.cpus,
  memory_mb: host.config.memoryMb,
  started_at: new Date(host.daemon.startedAt).toISOString(),
  features: ['exec', 'attach', 'copy', 'logs', 'proxy', 'forward', 'events', 'idempotency', 'standby', 'fork'],
})

const counts = (rows: readonly { readonly word: string; readonly n: number }[]): Record<string, number> =>
  Object.fromEntries(rows.map((row) => [row.word, row.n]))

/** Counts the vms by their states, and what they take of this host. */
export const summary = (host: Host): SystemSummary => {
  const { store } = host
  const n = sql<number>`count(*)`
  const byStatus = counts(store.select({ word: vms.state, n }).from(vms).groupBy(vms.state).all())
  return {
    total_vms: Object.values(byStatus).reduce((a, b) => a + b, 0),
    by_status: byStatus,
    by_runtime: counts(store.select({ word: vms.runtime, n }).from(vms).groupBy(vms.runtime).all()),
    total_plugins: 0,
    enabled_plugins: 0,
    plugins: [],
    capacity: capacity(store, host.config),
    images: store.select({ n }).from(images).get()?.n ?? 0,
    kernels: store.select({ n }).from(kernels).get()?.n ?? 0,
  }
}
