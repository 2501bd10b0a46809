import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { connect, type Client } from '../../src/client/client.ts'
import type { Vm } from '../../src/contract/vm.ts'
import type { VmCreate } from '../../src/contract/vm-spec.ts'
import { closeFd } from '../../src/linux/fd.ts'
import { tryLock } from '../../src/linux/lock.ts'

/** The file under test, run from another folder with an empty environment: what a user copies, not these sources. */
export const AERIE = process.env['AERIE_BIN'] ?? join(import.meta.dir, '../../dist/aerie')
export const haveBinary = existsSync(AERIE)

const MARK = /AERIE_MACHINE=([0-9a-f]{16})\//

export interface Daemon {
  readonly folder: string
  readonly state: string
  readonly run: string
  readonly socket: string
  readonly client: Client
  readonly pid: number
  readonly exited: Promise<number>
  /** Ends it as a crash does. */
  crash(): Promise<void>
  /** Ends it as systemd does, and waits. */
  end(): Promise<number>
  /** What it has said so far. */
  log(): string
  /** All that it said, once it and whoever shares its stderr have ended. */
  readonly said: Promise<string>
}

export interface Options {
  readonly flags?: readonly string[]
  readonly folder?: string
  readonly fake?: boolean
  readonly mayFail?: boolean
  /** Where the network namespace is mounted in which it serves. */
  readonly netns?: string
  /** What it finds at /etc/resolv.conf. */
  readonly resolvers?: string
}

/** A short folder, removed with all that runs in it by `clean`. */
export const newFolder = (): string => mkdtempSync('/tmp/aerie-t-')

export const startDaemon = async (options: Options = {}): Promise<Daemon> => {
  const folder = options.folder ?? newFolder()
  const state = join(folder, 'state')
  const run = join(folder, 'run')
  const socket = join(run, 'aerie.sock')
  const logPath = join(folder, 'daemon.log')
  mkdirSync(folder, { recursive: true })
  const child = Bun.spawn(
    [
      ...(options.netns === undefined ? [] : ['nsenter', `--net=${options.netns}`, '--']),
      ...(options.resolvers === undefined
        ? []
        : ['unshare', '-m', 'sh', '-c', `mount --bind ${options.resolvers} /etc/resolv.conf && exec "$@"`, 'sh']),
      AERIE,
      'serve',
      '--state',
      state,
      '--run',
      run,
      '--log-level',
      'debug',
      // Links of the machine that tests run on are touched by no test.
      ...(options.netns === undefined ? ['--default-network', 'vsock'] : []),
      ...(options.fake ? ['--hypervisor', 'fake'] : []),
      ...(options.flags ?? []),
    ],
    { cwd: '/', env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' }, stdio: ['ignore', Bun.file(logPath), 'pipe'] },
  )
  let log = ''
  const said = (async () => {
    for await (const part of child.stderr) log += Buffer.from(part).toString()
    return log
  })()
  const client = connect({ kind: 'unix', path: socket })
  for (let tries = 0; !options.mayFail; tries++) {
    const answer = await fetch('http://localhost/healthz', { unix: socket }).catch(() => undefined)
    if (answer?.ok) break
    if (child.exitCode !== null || child.signalCode !== null || tries > 1500)
      throw new Error(`the daemon did not come up (${child.exitCode ?? child.signalCode}): ${log}`)
    await Bun.sleep(20)
  }
  return {
    folder,
    state,
    run,
    socket,
    client,
    pid: child.pid,
    exited: child.exited,
    log: () => log,
    said,
    crash: async () => {
      child.kill('SIGKILL')
      await child.exited
    },
    end: async () => {
      child.kill('SIGTERM')
      return await child.exited
    },
  }
}

/** The processes that a state folder's daemon started, by the mark in their environment. */
export const machinesOf = (state: string): number[] => {
  const id = existsSync(join(state, 'id')) ? readFileSync(join(state, 'id'), 'utf8').trim() : ''
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return id !== '' && MARK.exec(readFileSync(`/proc/${pid}/environ`, 'latin1'))?.[1] === id
      } catch {
        return false
      }
    })
}

/**
 * Waits until no daemon serves a state folder. The kernel lets go of the lock after the last of the daemon's own
 * doings, which a socket that has gone says nothing of: the database is closed after it.
 */
export const daemonGone = async (state: string, seconds = 60): Promise<void> => {
  await until(() => {
    const lock = tryLock(join(state, 'lock'))
    if (lock !== undefined) closeFd(lock)
    return lock !== undefined
  }, seconds)
}

/** Where a run keeps what a person needs who looks why it failed: consoles, logs, KVM's counters. */
const ARTEFACTS = process.env['AERIE_TEST_ARTEFACTS']
const KVM_COUNTERS = '/sys/kernel/debug/kvm'

const keepArtefacts = (daemon: Daemon, folder: string): void => {
  const kept = mkdtempSync(join(folder, `${basename(daemon.folder)}-`))
  writeFileSync(join(kept, 'daemon.log'), daemon.log())
  const vms = join(daemon.state, 'vms')
  for (const uid of existsSync(vms) ? readdirSync(vms) : []) {
    for (const name of readdirSync(join(vms, uid)).filter((one) => /\.(log|jsonl)$/.test(one))) {
      try {
        copyFileSync(join(vms, uid, name), join(kept, `${uid}-${name}`))
      } catch {
        /* its vm is just being deleted */
      }
    }
  }
  for (const pid of machinesOf(daemon.state)) {
    for (const machine of existsSync(KVM_COUNTERS)
      ? readdirSync(KVM_COUNTERS).filter((name) => name.startsWith(`${pid}-`))
      : []) {
      const counters = readdirSync(join(KVM_COUNTERS, machine), { recursive: true, encoding: 'utf8' })
        .sort()
        .flatMap((name) => {
          try {
            return `${name} ${readFileSync(join(KVM_COUNTERS, machine, name), 'utf8').trim()}\n`
          } catch {
            return []
          } // a folder, or gone
        })
      writeFileSync(join(kept, `${machine}.kvm`), counters.join(''))
    }
  }
}

/** Ends a daemon with all that it started, and removes its folder. */
export const clean = async (daemon: Daemon): Promise<void> => {
  if (ARTEFACTS !== undefined) keepArtefacts(daemon, ARTEFACTS)
  await daemon.crash()
  for (const pid of machinesOf(daemon.state)) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      /* it has gone */
    }
  }
  await until(() => machinesOf(daemon.state).length === 0)
  for (const group of cgroupsOf(daemon.state)) {
    try {
      rmdirSync(group)
    } catch {
      /* a process of it is still leaving */
    }
  }
  rmSync(daemon.folder, { recursive: true, force: true })
}

/** The cgroups of a state folder's vms, in every tree. */
export const cgroupsOf = (state: string): string[] => {
  const id = existsSync(join(state, 'id')) ? readFileSync(join(state, 'id'), 'utf8').trim() : '-'
  const trees = [
    '/sys/fs/cgroup',
    ...readdirSync('/sys/fs/cgroup', { withFileTypes: true })
      .filter((one) => one.isDirectory())
      .map((one) => join('/sys/fs/cgroup', one.name)),
  ]
  return trees
    .map((tree) => join(tree, 'aerie'))
    .filter((tree) => existsSync(tree))
    .flatMap((tree) =>
      readdirSync(tree)
        .filter((name) => name.startsWith(`${id}-`))
        .map((name) => join(tree, name)),
    )
}

/** Waits for a condition; there is no event to wait for where this is used. */
export const until = async (condition: () => boolean | Promise<boolean>, seconds = 120): Promise<void> => {
  for (const end = Date.now() + seconds * 1000; !(await condition()); ) {
    if (Date.now() > end) throw new Error(`not within ${seconds} s: ${condition.toString()}`)
    await Bun.sleep(20)
  }
}

/** A tar of nothing but a folder, for images that the fake driver never looks into. */
export const tinyTar = async (): Promise<ReadableStream<Uint8Array>> =>
  new Blob([await new Bun.Archive({ 'etc/hostname': 'x\n' }).blob()]).stream()

/** A kernel of no use, but one that is taken: what the fake driver needs is a row. */
export const seedFake = async (daemon: Daemon): Promise<void> => {
  const images = await daemon.client.call('image.list', {})
  if (!images.some((image) => image.name === 'base'))
    await daemon.client.upload('image.import', { query: { name: 'base', cmd: '["sleep","1000"]' } }, await tinyTar())
}

export const createVm = (daemon: Daemon, want: VmCreate = {}, idempotencyKey?: string): Promise<Vm> =>
  daemon.client.call(
    'vm.create',
    { body: { memory_mb: 192, ...want } },
    idempotencyKey === undefined ? {} : { idempotencyKey },
  )

export interface Ran {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** The command line as a user has it, against one daemon. */
export const cli = async (
  daemon: Daemon | undefined,
  args: readonly string[],
  options: { readonly stdin?: string | Uint8Array | Blob; readonly env?: Record<string, string> } = {},
): Promise<Ran> => {
  const child = Bun.spawn([AERIE, ...args], {
    cwd: '/',
    stdin: options.stdin === undefined ? 'ignore' : new Blob([options.stdin as string]),
    stdout: 'pipe',
    stderr: 'pipe',
    env: { PATH: '/usr/bin:/bin', ...(daemon ? { AERIE_HOST: `unix://${daemon.socket}` } : {}), ...options.env },
  })
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { code, stdout, stderr }
}
