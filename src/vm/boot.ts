import type { Host } from '../host.ts'
import type { End, HypervisorDriver, Machine, MachineSpec } from '../hypervisor/driver.ts'
import { guestSilent } from '../guest/errors.ts'
import type { AgentEvent } from '../guest/messages.ts'
import { GuestSession, hashSecret, type SessionOwner } from '../guest/session.ts'
import { Fault } from '../lib/fault.ts'
import { ensureFolder } from '../lib/folder.ts'
import { orAbort, sleep } from '../lib/wait.ts'
import { makeCgroups } from './cgroups.ts'
import type { VmRow } from '../store/schema.ts'
import { AppLog } from './app-log.ts'
import { configure } from './configuration.ts'
import { vmStartFailed } from './errors.ts'
import { finish } from './finish.ts'
import { jailOf } from './jail.ts'
import { LiveVm } from './live.ts'
import { places } from './places.ts'
import { release } from './release.ts'
import { byUid, change, move, sessionOf } from './record.ts'

/** A held vm whose caller never attaches is deleted after this long, if it is one that deletes itself. */
const UNATTACHED_MS = 60_000

/*
 * One boot, in the order of its effects. Whatever is cut short by a crash is found again by the sweep (`vm/adopt.ts`):
 *
 *   runtime folder → session socket → cgroups → processes (marked in their environment) → `machine` in the row → ready
 *
 * A process that was started and not yet written to the row is found by its mark.
 */

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
  const at = places(host.config, row)
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

/** What the agent is told and what its events do to the row. Every change is durable before the agent hears that it was taken. */
const ownerOf = (host: Host, uid: string, live: () => LiveVm): SessionOwner => ({
  configure: () => {
    const row = byUid(host.store, uid)
    if (!row) throw new Error('the vm has gone')
    const configuration = configure(row, host.images.byDigest(row.imageDigest).config)
    change(host.store, uid, { sessionSecret: hashSecret(configuration.secret) })
    return configuration
  },
  secretHash: () => sessionOf(host.store, uid)?.secret ?? undefined,
  acked: () => sessionOf(host.store, uid)?.acked ?? 0,
  event: async (event: AgentEvent) => {
    await take(host, live(), event)
  },
})

const take = async (host: Host, live: LiveVm, event: AgentEvent): Promise<void> => {
  await live.recorded() // a row that is `running` without its machine would lose it in a crash
  const row = byUid(host.store, live.uid)
  if (!row) return
  switch (event.type) {
    case 'ready': {
      const bootMs = row.startedAt === null ? event.boot_ms : Date.now() - row.startedAt
      if (row.state === 'starting' && !row.identityDue)
        move(host.store, host.events, live.uid, 'ready', { ackedSeq: event.seq, wasReady: true, bootMs })
      else change(host.store, live.uid, { ackedSeq: event.seq, wasReady: true, bootMs })
      live.ready.resolve(event.boot_ms)
      live.follow()
      return
    }
    case 'exited': {
      await live.drain()
      change(host.store, live.uid, {
        ackedSeq: event.seq,
        exitCode: event.code,
        exitSignal: event.signal,
        exitMessage:
          [event.message ?? '', ...(event.oom ? ['OOM'] : [])]
            .filter((word) => word !== '')
            .join(' - ')
            .slice(0, 1000) || null,
      })
      return
    }
    case 'failed': {
      const message = `the agent failed at ${event.stage}: ${event.message}`.slice(0, 1000)
      change(host.store, live.uid, { ackedSeq: event.seq, statusMessage: message, exitMessage: message })
      live.ready.reject(new Error(message))
      return
    }
    default:
      change(host.store, live.uid, { ackedSeq: event.seq })
  }
}

/** Listens for the agent of a vm and makes its live record. */
export const listen = async (host: Host, row: VmRow): Promise<LiveVm> => {
  const at = places(host.config, row)
  ensureFolder(at.run, 0o711)
  const appLog = new AppLog(at.appLog, host.config.log_max_mb * 2 ** 20)
  const found: { live?: LiveVm } = {}
  const owner = ownerOf(host, row.uid, () => {
    if (!found.live) throw new Error('no vm yet')
    return found.live
  })
  const session = await GuestSession.listen(at.session, jailOf(host.config, row), owner, host.log)
  found.live = new LiveVm(row.uid, row.name, appLog, session, host.log)
  host.live.set(row.uid, found.live)
  return found.live
}

/** Watches for the end of a machine: the row learns of it in the vm's queue, unless a verb was faster. */
export const watch = (host: Host, live: LiveVm, machine: Machine): void => {
  live.machine = machine
  void machine.ended
    .then((end) =>
      host.queue.run(live.uid, async () => {
        if (host.live.get(live.uid) !== live) return
        await finish(host, live, end)
        const row = byUid(host.store, live.uid)
        if (row?.state === 'starting') await boot(host, row).catch(() => undefined) // the guest asked for a reboot; what fails is in the row
      }),
    )
    .catch((error: unknown) => {
      host.log.error({ vm: live.name, err: error }, 'cannot finish an ended vm')
    })
}

const sayEnd = (end: End): string =>
  end.message === '' ? `the machine ended (${end.reason})` : `the machine ended (${end.reason}): ${end.message}`

/**
 * Boots a vm whose row says `starting` (moved there with `newBoot`), until its agent is ready. Call it in the vm's queue. What fails is taken back, the row ends in
 * `crashed` with the reason, and the fault says why.
 *
 * @throws `vm_start_failed`, `hypervisor_unavailable`
 */
export const boot = async (host: Host, row: VmRow): Promise<void> => {
  let live: LiveVm | undefined
  try {
    const driver = host.hypervisors.need(row.hypervisor)
    live = await listen(host, row)
    live.log.restart()
    const timeout = AbortSignal.timeout(host.config.boot_timeout_s * 1000)
    const signal = AbortSignal.any([timeout, live.cancel.signal])
    const spec = await machineSpec(host, row, driver)
    host.step('before-machine')
    const machine = await driver.start(spec, signal)
    host.step('machine-started')
    change(host.store, row.uid, { machine: machine.identity })
    host.step('machine-recorded')
    watch(host, live, machine)
    await Promise.race([
      orAbort(live.ready.promise, signal),
      machine.ended.then((end) => {
        throw new Error(sayEnd(end))
      }),
    ])
    host.step('ready')
    expireUnattached(host, live, row)
  } catch (error) {
    const fault = startFault(host, row, live, error)
    await abandon(host, row, live)
    const now = byUid(host.store, row.uid)
    if (now?.state === 'starting')
      move(host.store, host.events, row.uid, 'broke', {
        statusMessage: fault.message,
        machine: null,
        stoppedAt: Date.now(),
      })
    throw fault
  }
}

const startFault = (host: Host, row: VmRow, live: LiveVm | undefined, error: unknown): Fault => {
  if (live?.cancel.signal.aborted && live.cancel.signal.reason instanceof Fault) return live.cancel.signal.reason
  if (error instanceof Fault && error.kind === 'unavailable') return error
  const reason =
    error instanceof DOMException && error.name === 'TimeoutError'
      ? guestSilent({ seconds: host.config.boot_timeout_s }).message
      : error instanceof Error
        ? error.message
        : String(error)
  return vmStartFailed({ name: row.name, reason }, error)
}

/** Takes back a boot: every process, socket and cgroup of the vm. Its files stay. */
export const abandon = async (host: Host, row: VmRow, live: LiveVm | undefined): Promise<void> => {
  if (live && host.live.get(row.uid) === live) host.live.delete(row.uid)
  await live?.machine?.kill()
  live?.close()
  await release(host, row)
}

/** A held vm that removes itself waits for its caller to attach; one that died before leaves no vm behind. */
export const expireUnattached = (host: Host, live: LiveVm, row: VmRow): void => {
  if (!row.spec.hold || !row.spec.auto_remove) return
  void sleep(UNATTACHED_MS).then(() => {
    if (!live.attached && host.live.get(live.uid) === live) void live.machine?.kill()
  })
}
