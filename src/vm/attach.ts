import type { AttachStart } from '../contract/exec.ts'
import type { Host } from '../host.ts'
import { processOf, startProcess, type GuestProcess } from './machine/process.ts'
import { runningAgain } from './machine/running.ts'
import { byUid } from './row/lookup.ts'
import { shutDown } from './machine/shutdown.ts'

/** Attaches to the workload; one that is held starts now. @throws `vm_wrong_state`, `agent_unavailable` */
export const attach = async (
  host: Host,
  ref: string,
  want: AttachStart,
  client: AbortSignal,
): Promise<GuestProcess> => {
  const { row, live, machine } = await runningAgain(host, ref, 'attach to', 'read')
  const { conversation, ok } = await startProcess(
    machine,
    'attach',
    {
      stdin: want.stdin === true,
      replay: want.replay === true,
      cols: want.cols,
      rows: want.rows,
    },
    client,
  )
  live.attached = true
  const attached = processOf(conversation, null, ok.tty)
  // `run`: who held the workload back until they could attach owns it, and a vm that removes itself does not outlive
  // them. Whoever comes later only looks.
  if (ok.released !== true || !row.spec.policy.auto_remove) return attached
  return {
    ...attached,
    close: () => {
      attached.close()
      const now = byUid(host.store, row.uid)
      if (now?.state === 'running' && host.vms.live.get(row.uid) === live)
        void host.vms.queue.run(row.uid, () => shutDown(host, row.uid, { timeout_s: 1 })).catch(() => undefined)
    },
  }
}
