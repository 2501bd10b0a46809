import type { Vm } from '../../contract/vm.ts'
import { showSpec } from '../../contract/vm-spec.ts'
import type { VmRow } from '../../store/schema.ts'

const iso = (ms: number): string => new Date(ms).toISOString()

/** Shows a row as the API does. No values of the environment: they may be secrets. */
export const view = ({ boot, ...row }: VmRow): Vm => ({
  id: row.id,
  uid: row.uid,
  name: row.name,
  status: row.state,
  status_message: row.statusMessage,
  runtime: row.runtime,
  plugin: row.plugin,
  image_digest: row.imageDigest,
  kernel: row.kernelDigest,
  hypervisor: row.hypervisor,
  pid: boot.machine?.process.pid ?? null,
  ip_address: row.ip,
  mac_address: row.mac,
  vsock_cid: row.cid,
  serial_socket: boot.machine ? `${boot.machine.folder}/console.sock` : '',
  walls: boot.machine?.walls ? [...boot.machine.walls] : null,
  ...showSpec(row.spec),
  env_names: Object.keys(row.spec.workload.env),
  forked_from: row.forkedFrom,
  exit_code: boot.exitCode,
  exit_signal: boot.exitSignal,
  exit_message: boot.exitMessage,
  boot_ms: boot.bootMs,
  gen: row.gen,
  created_at: iso(row.createdAt),
  updated_at: iso(row.updatedAt),
  started_at: boot.startedAt === null ? null : iso(boot.startedAt),
  stopped_at: boot.stoppedAt === null ? null : iso(boot.stoppedAt),
})
