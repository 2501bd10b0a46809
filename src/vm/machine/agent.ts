import type { AgentEvent } from '../../guest/messages.ts'
import { GuestSession, type SessionOwner, hashSecret } from '../../guest/session.ts'
import type { Host, MachineHost } from '../../host.ts'
import { ensureFolder } from '../../lib/folder.ts'
import type { VmRow } from '../../store/schema.ts'
import { AppLog } from '../log/app-log.ts'
import { configure } from './configuration.ts'
import { jailOf } from './jail.ts'
import { LiveVm } from './live.ts'
import { pathsOf } from '../row/layout.ts'
import { byUid, sessionOf } from '../row/lookup.ts'
import { change, move } from '../row/moves.ts'

/**
 * Says what the agent is told, and what its events do to the row. Every change is durable before the agent hears that
 * it was taken.
 */
const ownerOf = (host: Pick<Host, 'store' | 'images' | 'networks'>, uid: string, live: () => LiveVm): SessionOwner => ({
  configure: () => {
    const row = byUid(host.store, uid)
    if (!row) throw new Error('the vm has gone')
    const configuration = configure(host, row, host.images.byDigest(row.imageDigest).config)
    change(host.store, uid, { boot: { sessionSecret: hashSecret(configuration.secret) } })
    return configuration
  },
  secretHash: () => sessionOf(host.store, uid)?.secret ?? undefined,
  acked: () => sessionOf(host.store, uid)?.acked ?? 0,
  event: async (event: AgentEvent) => {
    await take(host, live(), event)
  },
})

const take = async (host: Pick<Host, 'store'>, live: LiveVm, event: AgentEvent): Promise<void> => {
  await live.recorded() // a row that is `running` without its machine would lose it in a crash
  const row = byUid(host.store, live.uid)
  if (!row) return
  switch (event.type) {
    case 'ready': {
      const { startedAt, identityDue } = row.boot
      const bootMs = startedAt === null ? event.boot_ms : Date.now() - startedAt
      const ready = { wasReady: true, boot: { ackedSeq: event.seq, bootMs } }
      if (row.state === 'starting' && !identityDue) move(host.store, live.uid, 'ready', ready)
      else change(host.store, live.uid, ready)
      live.ready.resolve(event.boot_ms)
      live.follow()
      return
    }
    case 'exited': {
      await live.drain()
      const exitMessage =
        [event.message ?? '', ...(event.oom ? ['OOM'] : [])]
          .filter((word) => word !== '')
          .join(' - ')
          .slice(0, 1000) || null
      change(host.store, live.uid, {
        boot: { ackedSeq: event.seq, exitCode: event.code, exitSignal: event.signal, exitMessage },
      })
      return
    }
    case 'failed': {
      const message = `the agent failed at ${event.stage}: ${event.message}`.slice(0, 1000)
      change(host.store, live.uid, { statusMessage: message, boot: { ackedSeq: event.seq, exitMessage: message } })
      live.ready.reject(new Error(message))
      return
    }
    default:
      change(host.store, live.uid, { boot: { ackedSeq: event.seq } })
  }
}

/** Listens for the agent of a vm and makes its live record. */
export const listenForAgent = async (host: MachineHost, row: VmRow): Promise<LiveVm> => {
  const at = pathsOf(host.config, row)
  ensureFolder(at.run, 0o711)
  const appLog = new AppLog(at.appLog, host.config.log_max_mb * 2 ** 20)
  const found: { live?: LiveVm } = {}
  const owner = ownerOf(host, row.uid, () => {
    if (!found.live) throw new Error('no vm yet')
    return found.live
  })
  const session = await GuestSession.listen(at.session, jailOf(host.config, row), owner, host.log)
  found.live = new LiveVm(row.uid, row.name, appLog, session, host.log)
  host.vms.live.set(row.uid, found.live)
  return found.live
}
