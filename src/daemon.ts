import { existsSync, lstatSync, readFileSync, rmdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { randomBytes } from 'node:crypto'
import { dirname, join } from 'node:path'
import { Type } from '@sinclair/typebox'
import { readConfig, type Config } from './config.ts'
import type { Host } from './host.ts'
import type { DriverOffer } from './hypervisor/driver.ts'
import { fake } from './hypervisor/drivers/fake/fake.ts'
import { qemu } from './hypervisor/drivers/qemu/qemu.ts'
import { talon } from './hypervisor/drivers/talon/talon.ts'
import { driverChecks, findHypervisors } from './hypervisor/hypervisors.ts'
import { serveApi } from './http/server.ts'
import { compactWhenQuiet } from './lib/compact.ts'
import { Images } from './image/images.ts'
import { Kernels } from './kernel/kernels.ts'
import { chain, fault } from './lib/fault.ts'
import { Networks } from './network/networks.ts'
import { ensureFolder } from './lib/folder.ts'
import { newLog } from './lib/log.ts'
import { Serial } from './lib/serial.ts'
import { sleep } from './lib/promise.ts'
import { tryLock } from './linux/lock.ts'
import { adoptSeeds } from './system/seeds.ts'
import { Snapshots } from './snapshot/snapshots.ts'
import { Ballast } from './store/ballast.ts'
import { openStore } from './store/open.ts'
import { configOf, doctor } from './system/doctor.ts'
import { Tokens } from './system/tokens.ts'
import { VERSION } from './version.ts'
import { adoptAll, reprobe } from './vm/adopt.ts'
import { ClockWatch, setClocks } from './vm/machine/clock.ts'
import { recordPendingEnds } from './vm/machine/end.ts'
import { resumeAllHalted } from './vm/machine/halt.ts'
import { messageOf } from './lib/thrown.ts'
import { punchConsoles } from './vm/log/console-trim.ts'

/**
 * Every driver there is, the best first: the last that is not only on request is what a host has that has nothing else.
 */
const DRIVERS: readonly DriverOffer[] = [talon, qemu, fake]

export const daemonRunning = fault(
  'daemon_running',
  'conflict',
  { state: Type.String() },
  (d) => `Cannot serve "${d.state}": another daemon does already`,
  'Give this one a state folder of its own with --state',
)
const stateUnwritable = fault(
  'state_unwritable',
  'invalid',
  { folder: Type.String(), reason: Type.String() },
  (d) => `Cannot use folder "${d.folder}": ${d.reason}`,
  'Run as root, or choose folders with --state and --run, or serve yourself alone with --user',
)

/** The time between two looks at what no event tells, ms: vms in `unknown`, the size of consoles. */
const TICK_MS = 5000
/** The time between two looks, ms, whether guests that wait for room on the disk can go on. */
const HALTED_MS = 1000
/** The time between two comparisons of the networks with their links, ms. */
const REPAIR_MS = 60_000

/**
 * Runs the daemon. This is the composition root, the only file that names a concrete driver. Resolves with the exit
 * code when it was asked to end; guests run on.
 *
 * Order of a start: lock → store → what was left by the last one is settled → API.
 *
 * @throws `config_invalid`, `daemon_running`, `state_unwritable`, `state_newer`, `listen_refused`, `address_taken`
 */
export const serve = async (flags: Readonly<Record<string, unknown>>): Promise<number> => {
  process.umask(0o077)
  const config = readConfig(flags, process.env, process.getuid?.() ?? 0)
  const log = newLog(config.log_level)
  process.on('uncaughtException', (error) => {
    log.fatal({ reasons: chain(error), stack: error.stack }, 'uncaught exception')
    process.exit(70)
  })
  process.on('unhandledRejection', (error) => {
    log.error({ reasons: chain(error), stack: error instanceof Error ? error.stack : undefined }, 'unhandled rejection')
  })
  makeFolders(config)
  await takeLock(config.state)

  const ballast = new Ballast(config.state)
  const store = openStore(join(config.state, 'state.db'), () => ballast.throwOff())
  const step = (name: string): void => {
    if (config.crash_at === name) process.kill(process.pid, 'SIGKILL')
  }
  const host: Host = {
    config,
    log,
    daemon: {
      stateId: stateId(config.state),
      version: VERSION,
      startedAt: Date.now(),
      step,
    },
    store,
    ballast,
    images: new Images(store, config.state),
    kernels: new Kernels(store, config.state),
    snapshots: new Snapshots(store, config.state),
    hypervisors: findHypervisors(DRIVERS, config),
    networks: new Networks({ store, config, stateId: stateId(config.state), log, step }),
    vms: { queue: new Serial(), live: new Map() },
  }
  await adoptSeeds(host)
  await host.networks.start()
  await adoptAll(host)

  const ending = Promise.withResolvers<void>()
  let going = false
  const api = await serveApi(host, new Tokens(store), () => going)
  const chosen = host.hypervisors.default
  log.info(
    {
      addresses: api.addresses,
      state: config.state,
      hypervisor: chosen.name,
      accelerator: chosen.accelerator,
      version: VERSION,
    },
    'aerie serves',
  )
  if (config.mode === 'user') log.info("a user's own daemon changes no links: vms have no network card")
  if (chosen.accelerator !== 'kvm') log.warn({ reason: chosen.reason }, 'guests run without KVM')
  else if (chosen.insteadOf !== undefined) log.warn({ reason: chosen.reason }, `guests run on ${chosen.name}`)
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const)
    process.on(signal, () => {
      ending.resolve()
    })
  compactWhenQuiet()
  let keeping = false
  let complained = false
  const keepSocket = () => {
    if (keeping || going) return
    keeping = true
    api
      .keep()
      .then(
        (anew) => {
          complained = false
          if (anew.length > 0) log.warn({ sockets: anew }, 'the socket was taken away: aerie listens anew')
        },
        (error: unknown) => {
          if (!complained)
            log.error({ reasons: chain(error) }, 'the socket was taken away, and aerie cannot listen anew')
          complained = true
        },
      )
      .finally(() => {
        keeping = false
      })
  }
  const timer = setInterval(
    () => {
      void reprobe(host)
      void ballast.make()
      void recordPendingEnds(host)
      punchConsoles(host)
      void host.networks.look()
      keepSocket()
      if (
        config.idle_exit_s > 0 &&
        host.vms.live.size === 0 &&
        host.vms.queue.busy === 0 &&
        api.open() === 0 &&
        Date.now() - api.lastActive() > config.idle_exit_s * 1000
      )
        ending.resolve()
    },
    Math.min(TICK_MS, config.idle_exit_s > 0 ? 500 : TICK_MS),
  )

  const clock = new ClockWatch()
  const halted = setInterval(() => {
    void resumeAllHalted(host)
    if (clock.hasJumped()) void setClocks(host)
  }, HALTED_MS)
  const repairs = setInterval(() => {
    void host.networks.repair()
  }, REPAIR_MS)
  void ballast.make()

  await ending.promise
  going = true
  clearInterval(timer)
  clearInterval(halted)
  clearInterval(repairs)
  await Promise.race([host.vms.queue.idle(), sleep(10_000)]) // what is half done gets its time; what is not done then is settled at the next start
  await api.stop()
  for (const live of host.vms.live.values()) live.close()
  host.networks.close()
  store.$client.close()
  log.info('aerie has ended; guests run on')
  return 0
}

const makeFolders = (config: Config): void => {
  for (const [folder, mode] of [
    [config.state, 0o700],
    [join(config.state, 'vms'), 0o700],
    [join(config.state, 'snapshots'), 0o700],
    [config.run, 0o711],
    [dirname(config.machines), 0o711],
    [config.machines, 0o711],
  ] as const) {
    try {
      const there = lstatSync(folder, { throwIfNoEntry: false })
      const owner = there?.uid
      if (there && !there.isDirectory()) throw new Error('it is no folder') // nor a link to one: /tmp is everybody's
      if (owner !== undefined && owner !== process.getuid?.()) throw new Error(`it belongs to uid ${owner}`)
      ensureFolder(folder, mode)
    } catch (error) {
      throw stateUnwritable({ folder, reason: messageOf(error) }, error)
    }
  }
  showMachines(config)
}

/** Leads from the runtime folder to where the sockets of the machines stand, for whoever looks for them there. */
const showMachines = ({ run, machines }: Config): void => {
  const link = join(run, 'm')
  if (link === machines) return
  try {
    if (lstatSync(link, { throwIfNoEntry: false })?.isDirectory()) rmdirSync(link)
    symlinkSync(machines, link)
  } catch {
    // It is there, or something else is: nothing of ours goes by it.
  }
}

/**
 * How long a lock may outlive the daemon that had it: a child that it was just starting shares it until it executes.
 */
const LOCK_MS = 2000

/** Takes the lock of a state folder. @throws `daemon_running` */
const takeLock = async (state: string): Promise<void> => {
  for (const end = Date.now() + LOCK_MS; tryLock(join(state, 'lock')) === undefined; await sleep(50)) {
    if (Date.now() > end) throw daemonRunning({ state })
  }
}

/**
 * Reads the random name of this state folder, which is made once: two daemons on one host know their own processes by
 * it.
 */
const stateId = (state: string): string => {
  const path = join(state, 'id')
  if (!existsSync(path)) writeFileSync(path, randomBytes(8).toString('hex'), { mode: 0o600, flag: 'wx' })
  return readFileSync(path, 'utf8').trim()
}

/** Tells what this host can do, for a command line that needs no daemon. */
export const examine = (which: 'system' | 'user') =>
  doctor(driverChecks(DRIVERS), configOf(which, process.env, process.getuid?.() ?? 0))
