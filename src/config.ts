import { existsSync, lstatSync, readdirSync, readFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'
import { isAbsolute, join } from 'node:path'
import { Type, type Static } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { HypervisorName } from './contract/hypervisor.ts'
import { oneOf } from './contract/operation.ts'
import { fault } from './lib/fault.ts'
import { messageOf } from './lib/thrown.ts'
import {
  fitsSockets,
  lastingRun,
  SOCKET_PATH_MAX,
  systemPaths,
  userConfigFile,
  userPaths,
  type Environment,
} from './lib/paths.ts'

/**
 * Every setting of the daemon, with its reason. Flags win over `AERIE_*`, that over `aerie.toml`, that over the
 * default.
 */
export const Settings = Type.Object(
  {
    user: Type.Boolean({ default: false, description: 'Serve one user: state under the XDG folders, no TCP' }),
    state: Type.Optional(Type.String({ description: 'State folder' })),
    run: Type.Optional(Type.String({ description: 'Runtime folder, short: sockets stand in it' })),
    socket: Type.Optional(Type.String({ description: 'Unix socket of the API' })),
    socket_group: Type.String({
      default: 'aerie',
      description: 'Group that may use the socket; it is as good as root',
    }),
    listen: Type.String({
      default: '',
      description: 'TCP address of the API, tokens needed, e.g. 127.0.0.1:7777; empty = none',
    }),
    listen_insecure: Type.Boolean({
      default: false,
      description: 'Allow an address other than the loopback without TLS',
    }),
    hypervisor: Type.Optional(HypervisorName),
    accelerator: oneOf('auto', 'kvm', 'tcg'),
    qemu: Type.String({ default: 'qemu-system-x86_64', description: 'The QEMU program' }),
    cpu_oversubscription: Type.Number({ default: 4, minimum: 0.1, maximum: 64 }),
    memory_limit_mb: Type.Integer({
      default: 0,
      minimum: 0,
      description: "Memory for vms; 0 = the host's less a reserve",
    }),
    boot_timeout_s: Type.Integer({ default: 120, minimum: 1, maximum: 3600 }),
    log_level: oneOf('trace', 'debug', 'info', 'warn', 'error', 'silent'),
    log_max_mb: Type.Integer({ default: 50, minimum: 1, description: "Of one vm's workload log and of its console" }),
    disk_io_bps: Type.Integer({
      default: 256 * 2 ** 20,
      minimum: 0,
      maximum: 2 ** 40,
      description: "Bytes a second that one vm's own disks may read and write, after a burst; 0 = no limit",
    }),
    disk_flushes_per_s: Type.Integer({
      default: 500,
      minimum: 0,
      maximum: 1_000_000,
      description: "Flushes a second of one vm's own disks, where the hypervisor can limit them (talon); 0 = no limit",
    }),
    landlock_abi_min: Type.Integer({
      default: 0,
      minimum: 0,
      maximum: 100,
      description:
        'Refuse talon on a kernel whose Landlock is older; 0 = run without that wall, which `aerie doctor` tells',
    }),
    idle_exit_s: Type.Integer({
      default: 0,
      minimum: 0,
      description: 'End when no vm and no client was there for so long; 0 = never',
    }),
    default_network: Type.String({
      default: 'auto',
      pattern: '^(auto|vsock|[a-z0-9]([a-z0-9-]*[a-z0-9])?)$',
      maxLength: 32,
      description:
        "Network of a vm that asks for none: auto = the default one where this daemon may change links, vsock = none, or a network's name",
    }),
    jail: Type.Boolean({ default: true, description: 'Own uid and cgroup a machine where root allows it' }),
    crash_at: Type.Optional(Type.String({ description: 'For tests: end with SIGKILL at this step' })),
  },
  { additionalProperties: false },
)
Settings.properties.accelerator.default = 'auto'
Settings.properties.log_level.default = 'info'
export type Settings = Static<typeof Settings>

/** The settings of a daemon with every path made out: read once at its start, and frozen. */
export interface Config extends Settings {
  readonly mode: 'system' | 'user'
  readonly state: string
  readonly run: string
  readonly socket: string
  /** The second socket of one user's daemon, in a folder that outlasts the session. */
  readonly lastingSocket?: string
  /** The folder of the machines' sockets. */
  readonly machines: string
  readonly cpus: number
  readonly memoryMb: number
}

export const configInvalid = fault(
  'config_invalid',
  'invalid',
  { origin: Type.String(), reason: Type.String() },
  (d) => `Cannot use the configuration of ${d.origin}: ${d.reason}`,
)

/** Reads `AERIE_MEMORY_LIMIT_MB=…` as `memory_limit_mb`. */
const fromEnvironment = (env: Environment): Record<string, unknown> =>
  Object.fromEntries(
    Object.keys(Settings.properties).flatMap((key) => {
      const value = env[`AERIE_${key.toUpperCase()}`]
      return value === undefined || value === '' ? [] : [[key, value]]
    }),
  )

const fromFile = (path: string): Record<string, unknown> => {
  try {
    return Bun.TOML.parse(readFileSync(path, 'utf8')) as Record<string, unknown>
  } catch (error) {
    throw configInvalid({ origin: path, reason: messageOf(error) }, error)
  }
}

/**
 * Tells where the machines have their sockets: in a place that lasts, where there is one, since whatever cleans the
 * folder that somebody named knows nothing of vms. Machines of an older release stay where they are until all have
 * ended.
 */
const machinesIn = (run: string, lasting: string | undefined): string => {
  const named = join(run, 'm')
  if (lasting === undefined) return named
  try {
    if (lstatSync(named).isDirectory() && readdirSync(named).length > 0) return named
  } catch {
    // There is none.
  }
  return join(lasting, 'm')
}

/** Reads one frozen configuration from all four sources; a value that does not fit names where it came from. */
export const readConfig = (flags: Readonly<Record<string, unknown>>, env: Environment, uid: number): Config => {
  const user = flags['user'] === true || env['AERIE_USER'] === 'true'
  const defaults = () => (user ? userPaths(env, uid) : systemPaths)
  const file =
    typeof flags['config'] === 'string'
      ? flags['config']
      : (env['AERIE_CONFIG'] ?? (user ? userConfigFile(env, uid) : '/etc/aerie/aerie.toml'))
  const asked = flags['config'] !== undefined || env['AERIE_CONFIG'] !== undefined
  const { config: _, ...flagged } = flags
  const layers: readonly (readonly [string, Record<string, unknown>])[] = [
    [file ?? '', file !== undefined && (asked || existsSync(file)) ? fromFile(file) : {}],
    ['the environment', fromEnvironment(env)],
    ['the flags', flagged],
  ]

  let merged: Record<string, unknown> = {}
  for (const [origin, layer] of layers) {
    merged = { ...merged, ...layer }
    const whole: unknown = Value.Default(Settings, Value.Convert(Settings, structuredClone(merged)))
    const wrong = Value.Errors(Settings, whole).First()
    if (wrong) throw configInvalid({ origin, reason: `${wrong.path.slice(1).replaceAll('/', '.')}: ${wrong.message}` })
  }
  const settings = Value.Default(Settings, Value.Convert(Settings, merged)) as Settings
  const state = settings.state ?? defaults().state
  const run = settings.run ?? (settings.state ? join(settings.state, 'run') : defaults().run)
  const socket = settings.socket ?? join(run, 'aerie.sock')
  for (const [name, path] of [
    ['state', state],
    ['run', run],
    ['socket', socket],
  ] as const) {
    if (!isAbsolute(path)) throw configInvalid({ origin: name, reason: `"${path}" is not an absolute path` })
  }
  const port = /^(?:\[[0-9a-fA-F:.]+\]|[^:[\]]*):(\d{1,5})$/.exec(settings.listen)?.[1]
  if (settings.listen !== '' && (port === undefined || Number(port) > 65_535)) {
    throw configInvalid({
      origin: 'listen',
      reason: `"${settings.listen}" is no address and port, as 127.0.0.1:7777 is`,
    })
  }
  if (!fitsSockets(run) || Buffer.byteLength(socket) > SOCKET_PATH_MAX) {
    throw configInvalid({
      origin: 'run',
      reason: `"${run}" is too long for Unix sockets: choose a shorter folder with --run`,
    })
  }
  const lasting = user || settings.run !== undefined ? lastingRun(state) : undefined
  const lastingSocket = user && lasting !== undefined ? join(lasting, 'aerie.sock') : undefined
  return Object.freeze({
    ...settings,
    mode: user ? 'user' : 'system',
    state,
    run,
    socket,
    ...(lastingSocket !== undefined && lastingSocket !== socket && { lastingSocket }),
    machines: user ? join(lasting ?? run, 'm') : machinesIn(run, lasting),
    cpus: cpus().length,
    memoryMb: Math.floor(totalmem() / 2 ** 20),
  })
}
