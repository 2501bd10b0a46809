import type { Host } from '../../host.ts'
import type { VmRow } from '../../store/schema.ts'
import type { LiveVm } from './live.ts'
import { removeRuntime } from './runtime.ts'

/** Takes back a boot: every process, socket and cgroup of the vm. Its files stay. */
export const tearDown = async (host: Host, row: VmRow, live: LiveVm | undefined): Promise<void> => {
  if (live && host.live.get(row.uid) === live) host.live.delete(row.uid)
  await live?.machine?.kill()
  live?.close()
  await removeRuntime(host, row)
}
