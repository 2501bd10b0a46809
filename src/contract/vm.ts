import { Type, type Static } from '@sinclair/typebox'
import { Nothing, oneOf, operation, Timestamp } from './operation.ts'
import { VmState } from './vm-state.ts'

/** Bounds of one vm, as its schema says them. The host's own capacity is checked apart. */
export const VM_LIMITS = {
  cpuCores: 64,
  memoryMbMin: 64,
  memoryMbMax: 1024 * 1024,
  diskMbMin: 64,
  diskMbMax: 4 * 1024 * 1024,
} as const

/** A DNS label's length: RFC 1035, section 2.3.4. */
export const VM_NAME_MAX = 63
export const VmName = Type.String({
  pattern: '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$',
  maxLength: VM_NAME_MAX,
  description: 'A DNS label: a-z, 0-9, inner dashes, at most 63',
})
/** Where a path names a vm: its id, its name, or a prefix of its uid or name that fits one vm alone. */
export const VmRef = Type.Object({ name: Type.String({ minLength: 1, maxLength: 64 }) })

/** What a program is given: execve(2) ends a string at its first NUL. */
const Text = Type.String({ maxLength: 131_072, pattern: '^[^\\u0000]*$' })
const GuestUser = Type.String({
  maxLength: 128,
  pattern: '^[^\\u0000-\\u001f]*$',
  description: 'user[:group], names or numbers of the image',
})
const GuestPath = Type.String({
  minLength: 1,
  maxLength: 4096,
  pattern: '^/[^\\u0000]*$',
  description: 'Absolute path in the guest',
})
const Argv = Type.Array(Text, { maxItems: 1024 })
export const Env = Type.Record(Type.String({ pattern: '^[^=\\u0000]{1,256}$' }), Text, { additionalProperties: false })
export const Metadata = Type.Record(
  Type.String({ pattern: '^[A-Za-z0-9._/-]{1,128}$' }),
  Type.String({ maxLength: 1024 }),
  { additionalProperties: false },
)

export const NetworkMode = oneOf('vsock', 'user')

/** What a caller may say. What has a default is optional here, and always present in `VmSpec`. */
export const VmCreate = Type.Object(
  {
    name: Type.Optional(VmName),
    image: Type.Optional(
      Type.String({ minLength: 1, maxLength: 255, default: 'base', description: 'Image by name or digest' }),
    ),
    cpu_cores: Type.Optional(
      Type.Integer({ minimum: 1, maximum: VM_LIMITS.cpuCores, default: 1, description: 'Virtual CPUs' }),
    ),
    memory_mb: Type.Optional(
      Type.Integer({
        minimum: VM_LIMITS.memoryMbMin,
        maximum: VM_LIMITS.memoryMbMax,
        default: 512,
        description: 'Guest memory, MiB',
      }),
    ),
    disk_mb: Type.Optional(
      Type.Integer({
        minimum: VM_LIMITS.diskMbMin,
        maximum: VM_LIMITS.diskMbMax,
        default: 10_240,
        description: 'Writable disk over the image, MiB, sparse',
      }),
    ),
    entrypoint: Type.Optional(Argv),
    cmd: Type.Optional(Argv),
    env: Type.Optional(Env),
    workdir: Type.Optional(GuestPath),
    user: Type.Optional(GuestUser),
    tty: Type.Optional(Type.Boolean({ default: false, description: 'Give the workload a terminal' })),
    hold: Type.Optional(Type.Boolean({ default: false, description: 'Start the workload when somebody attaches' })),
    auto_remove: Type.Optional(Type.Boolean({ default: false, description: 'Delete the vm when it has stopped' })),
    port: Type.Optional(
      Type.Integer({ minimum: 1, maximum: 65_535, description: 'Port of the workload, for the proxy under /agent/' }),
    ),
    network: Type.Optional(
      Type.Object({ mode: NetworkMode }, { default: { mode: 'vsock' }, additionalProperties: false }),
    ),
    kernel: Type.Optional(
      Type.String({
        maxLength: 128,
        description: 'Kernel by name, version or digest; the default kernel where absent',
      }),
    ),
    kernel_cmdline: Type.Optional(
      Type.String({
        maxLength: 1024,
        default: '',
        pattern: '^[^\\u0000-\\u001f\\u007f]*$',
        description: 'Appended to the kernel command line',
      }),
    ),
    hypervisor: Type.Optional(oneOf('qemu', 'talon', 'fake')),
    forkable: Type.Optional(
      Type.Boolean({
        default: false,
        description: "Keep the guest's memory where forks can share it: a fork copies none of it",
      }),
    ),
    stop_timeout_s: Type.Optional(
      Type.Integer({ minimum: 0, maximum: 3600, default: 5, description: 'Grace before a stop becomes a kill' }),
    ),
    metadata: Type.Optional(Metadata),
    plugin: Type.Optional(Type.String({ maxLength: 63 })),
    runtime: Type.Optional(Type.String({ maxLength: 63 })),
  },
  { additionalProperties: false },
)
export type VmCreate = Static<typeof VmCreate>

/** What is true of a vm: every default filled, kept in its row. */
export interface VmSpec {
  readonly image: string
  readonly cpu_cores: number
  readonly memory_mb: number
  readonly disk_mb: number
  readonly tty: boolean
  readonly hold: boolean
  readonly auto_remove: boolean
  readonly network: { readonly mode: Static<typeof NetworkMode> }
  readonly kernel_cmdline: string
  readonly stop_timeout_s: number
  readonly metadata: Readonly<Record<string, string>>
  readonly env: Readonly<Record<string, string>>
  readonly forkable?: boolean
  readonly entrypoint?: readonly string[]
  readonly cmd?: readonly string[]
  readonly workdir?: string
  readonly user?: string
  readonly port?: number
  readonly kernel?: string
  readonly hypervisor?: 'qemu' | 'talon' | 'fake'
  readonly plugin?: string
  readonly runtime?: string
}

export const Vm = Type.Object({
  id: Type.Integer(),
  uid: Type.String({ pattern: '^vm_[0-9a-z]{20}$' }),
  name: VmName,
  status: VmState,
  status_message: Type.Union([Type.String(), Type.Null()], {
    description: 'Why the vm is in this state, where there is a reason',
  }),
  runtime: Type.String(),
  plugin: Type.Union([Type.String(), Type.Null()]),
  image: Type.String(),
  image_digest: Type.String(),
  kernel: Type.String(),
  hypervisor: Type.String(),
  pid: Type.Union([Type.Integer(), Type.Null()]),
  ip_address: Type.String(),
  mac_address: Type.String(),
  vsock_cid: Type.Integer(),
  cpu_cores: Type.Integer(),
  memory_mb: Type.Integer(),
  disk_mb: Type.Integer(),
  kernel_cmdline: Type.String(),
  serial_socket: Type.String(),
  network: Type.Object({ mode: NetworkMode }),
  port: Type.Union([Type.Integer(), Type.Null()]),
  tty: Type.Boolean(),
  auto_remove: Type.Boolean(),
  entrypoint: Type.Union([Type.Array(Type.String()), Type.Null()]),
  cmd: Type.Union([Type.Array(Type.String()), Type.Null()]),
  env_names: Type.Array(Type.String(), { description: 'Names only: values may be secrets' }),
  metadata: Metadata,
  stop_timeout_s: Type.Integer(),
  forkable: Type.Boolean(),
  forked_from: Type.Union([Type.String(), Type.Null()], { description: 'uid of the vm that this one is a clone of' }),
  exit_code: Type.Union([Type.Integer(), Type.Null()]),
  exit_signal: Type.Union([Type.Integer(), Type.Null()]),
  exit_message: Type.Union([Type.String(), Type.Null()]),
  boot_ms: Type.Union([Type.Integer(), Type.Null()], { description: "From the start of the VMM to the agent's ready" }),
  gen: Type.Integer({ description: 'Grows with every change of this record' }),
  created_at: Timestamp,
  updated_at: Timestamp,
  started_at: Type.Union([Timestamp, Type.Null()]),
  stopped_at: Type.Union([Timestamp, Type.Null()]),
})
export type Vm = Static<typeof Vm>

export const VmListQuery = Type.Object({
  status: Type.Optional(Type.String({ description: 'Comma list of states' })),
  runtime: Type.Optional(Type.String()),
  plugin: Type.Optional(Type.String()),
  q: Type.Optional(Type.String({ maxLength: 128, description: 'Part of the name' })),
  metadata: Type.Optional(
    Type.Union([Type.String(), Type.Array(Type.String())], { description: 'key=value, repeatable, all must match' }),
  ),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000 })),
  offset: Type.Optional(Type.Integer({ minimum: 0, default: 0 })),
  sort: Type.Optional(oneOf('id', 'name', 'status', 'runtime', 'created_at', 'updated_at')),
  order: Type.Optional(oneOf('asc', 'desc')),
})
export type VmListQuery = Static<typeof VmListQuery>

export const VmStop = Type.Object(
  {
    timeout_s: Type.Optional(
      Type.Integer({ minimum: 0, maximum: 3600, description: "Grace; the vm's own where absent" }),
    ),
    kill: Type.Optional(
      Type.Boolean({
        default: true,
        description: 'End the machine when the grace is over; without it the vm stays and the stop fails',
      }),
    ),
  },
  { additionalProperties: false },
)
export type VmStop = Static<typeof VmStop>

/** A vm may be forked this many times by one request. */
export const FORKS_MAX = 64
export const VmFork = Type.Object(
  {
    name: Type.Optional(VmName),
    count: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: FORKS_MAX,
        default: 1,
        description: 'How many clones; of more than one, the name gets -1, -2 and so on behind it',
      }),
    ),
    target_state: Type.Optional(oneOf('running', 'standby', 'stopped')),
    metadata: Type.Optional(Metadata),
  },
  {
    additionalProperties: false,
    description: "target_state is the source's own where absent; `stopped` clones the disk alone",
  },
)
export type VmFork = Static<typeof VmFork>

/** What became of the clones: one that failed has left nothing behind. */
export const VmForks = Type.Object({
  vms: Type.Array(Vm),
  failed: Type.Array(Type.Object({ name: Type.String(), code: Type.String(), message: Type.String() })),
})
export type VmForks = Static<typeof VmForks>

/** Loosened on start: what the next run of the workload shall be; absent = as before (H8). */
export const VmStart = Type.Object(
  {
    entrypoint: Type.Optional(Argv),
    cmd: Type.Optional(Argv),
    env: Type.Optional(Env),
  },
  { additionalProperties: false },
)
export type VmStart = Static<typeof VmStart>

export const ExecStart = Type.Object(
  {
    argv: Type.Array(Text, { minItems: 1, maxItems: 1024 }),
    env: Type.Optional(Env),
    cwd: Type.Optional(GuestPath),
    user: Type.Optional(GuestUser),
    tty: Type.Optional(Type.Boolean({ default: false })),
    cols: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535 })),
    rows: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535 })),
    stdin: Type.Optional(
      Type.Boolean({ default: false, description: 'Whether stdin will be sent; else the process reads end of file' }),
    ),
    timeout_ms: Type.Optional(Type.Integer({ minimum: 1, maximum: 2 ** 31 - 1 })),
  },
  { additionalProperties: false },
)
export type ExecStart = Static<typeof ExecStart>

/** The first message of an attach. */
export const AttachStart = Type.Object(
  {
    stdin: Type.Optional(Type.Boolean({ default: false })),
    replay: Type.Optional(
      Type.Boolean({ default: false, description: 'Send what the workload has said so far first' }),
    ),
    cols: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535 })),
    rows: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535 })),
  },
  { additionalProperties: false },
)
export type AttachStart = Static<typeof AttachStart>

/**
 * Exec and attach on one WebSocket: the first message is text (`ExecStart` or `AttachStart`), every later one is binary, a channel
 * byte and the rest. `control` is JSON, `ExecControl`. A client sends as many bytes of stdin as the `window` messages add up to, the
 * first of which comes with `started`: so a signal is never stuck behind input that nobody reads.
 */
export const CHANNEL = { stdin: 0, stdout: 1, stderr: 2, control: 3 } as const
export type ExecControl =
  // from the server
  | { readonly type: 'started'; readonly pid: number | null; readonly tty: boolean }
  | { readonly type: 'window'; readonly bytes: number }
  | { readonly type: 'exit'; readonly code: number; readonly signal: number | null; readonly message: string | null }
  | { readonly type: 'error'; readonly code: string; readonly message: string; readonly hint?: string }
  // from the client
  | { readonly type: 'resize'; readonly cols: number; readonly rows: number }
  | { readonly type: 'signal'; readonly signal: number }
  | { readonly type: 'eof' }

/**
 * Forward and console are raw: a binary message is bytes. In a forward an empty one ends its direction and leaves the other open, as
 * shutdown(2) does. A failure is the close itself: its reason is JSON, `{code, message}`, cut to what a close frame holds.
 */
export const RAW_END = new Uint8Array(0)

/** An exec for programs that want one answer: output up to 1 MiB a stream, base64 where it is no UTF-8. */
export const ExecResult = Type.Object({
  exit_code: Type.Integer(),
  signal: Type.Union([Type.Integer(), Type.Null()]),
  stdout: Type.String(),
  stderr: Type.String(),
  encoding: oneOf('utf8', 'base64'),
  truncated: Type.Boolean(),
})
export const ExecRun = Type.Composite(
  [
    Type.Omit(ExecStart, ['tty', 'cols', 'rows', 'stdin']),
    Type.Object({ input: Type.Optional(Type.String({ maxLength: 1_048_576, description: 'stdin, UTF-8' })) }),
  ],
  { additionalProperties: false },
)

export const FileStat = Type.Object({
  exists: Type.Boolean(),
  is_dir: Type.Boolean(),
  is_file: Type.Boolean(),
  is_symlink: Type.Boolean(),
  link_target: Type.Union([Type.String(), Type.Null()]),
  mode: Type.Integer(),
  size: Type.Integer(),
  uid: Type.Integer(),
  gid: Type.Integer(),
  mtime_ms: Type.Integer(),
})
export type FileStat = Static<typeof FileStat>
export const FileList = Type.Object({
  entries: Type.Array(Type.Composite([Type.Object({ name: Type.String() }), FileStat])),
  truncated: Type.Boolean(),
})

export const VmStats = Type.Object({
  name: VmName,
  uptime_ms: Type.Integer(),
  cpu: Type.Object({
    user_ms: Type.Integer(),
    system_ms: Type.Integer(),
    idle_ms: Type.Integer(),
    steal_ms: Type.Integer(),
    count: Type.Integer(),
  }),
  load: Type.Array(Type.Number()),
  memory: Type.Object({
    total: Type.Integer(),
    available: Type.Integer(),
    used: Type.Integer(),
    cached: Type.Integer(),
    swap: Type.Integer(),
  }),
  disks: Type.Array(
    Type.Object({ mount: Type.String(), size: Type.Integer(), used: Type.Integer(), available: Type.Integer() }),
  ),
  processes: Type.Integer(),
  host: Type.Object({
    memory_bytes: Type.Union([Type.Integer(), Type.Null()], {
      description: 'Resident on the host, all processes of the vm',
    }),
    cpu_ms: Type.Union([Type.Integer(), Type.Null()]),
    disk_bytes: Type.Integer({ description: "Blocks that the vm's own disk takes" }),
  }),
})
export type VmStats = Static<typeof VmStats>

export const LogSource = oneOf('app', 'console', 'vmm', 'agent', 'all')
export const LogLine = Type.Object({
  name: Type.String(),
  source: Type.String(),
  stream: Type.String(),
  line: Type.String(),
  timestamp: Type.Union([Timestamp, Type.Null()]),
})
export type LogLine = Static<typeof LogLine>
export const LogQuery = Type.Object({
  source: Type.Optional(LogSource),
  tail: Type.Optional(
    Type.Integer({ minimum: 0, maximum: 1_000_000, description: 'Only the last lines; all where absent' }),
  ),
  follow: Type.Optional(Type.Boolean({ default: false })),
  since: Type.Optional(Type.String({ maxLength: 64, description: 'RFC 3339, or a duration back from now (5m)' })),
})
export type LogQuery = Static<typeof LogQuery>

export const WaitFor = oneOf('ready', 'stopped', 'exit', 'deleted')
export const WaitQuery = Type.Object({
  for: Type.Optional(WaitFor),
  timeout_s: Type.Optional(Type.Number({ minimum: 0, maximum: 86_400, default: 60 })),
})
export type WaitQuery = Static<typeof WaitQuery>

const one = ['vm_not_found', 'vm_ambiguous'] as const
const running = [...one, 'vm_wrong_state', 'agent_unavailable'] as const
const admin = { params: VmRef, scope: 'admin' as const }
const tags = ['vm'] as const

export const vmOperations = {
  'vm.create': operation({
    method: 'POST',
    path: '/api/v1/vms',
    detail: {
      tags,
      summary: 'Create a vm and start it',
      description:
        "Answers when the guest's agent is ready. The create goes on when the caller goes away: a retry with the same Idempotency-Key finds it.",
    },
    body: VmCreate,
    response: { 201: Vm },
    scope: 'admin',
    faults: [
      'vm_exists',
      'image_not_found',
      'kernel_not_found',
      'capacity_exhausted',
      'hypervisor_unavailable',
      'vm_start_failed',
      'idempotency_conflict',
      'workload_missing',
      'disk_exhausted',
      'vm_deleted',
    ],
  }),
  'vm.list': operation({
    method: 'GET',
    path: '/api/v1/vms',
    detail: { tags, summary: 'List vms' },
    query: VmListQuery,
    response: { 200: Type.Array(Vm) },
    faults: ['filter_invalid'],
    scope: 'read',
  }),
  'vm.get': operation({
    method: 'GET',
    path: '/api/v1/vms/:name',
    detail: { tags, summary: 'Show one vm' },
    params: VmRef,
    response: { 200: Vm },
    faults: one,
    scope: 'read',
  }),
  'vm.delete': operation({
    ...admin,
    method: 'DELETE',
    path: '/api/v1/vms/:name',
    detail: { tags, summary: 'End a vm and delete all that is its own' },
    response: { 204: Nothing },
    faults: [...one, 'vm_wrong_state'],
  }),
  'vm.start': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/start',
    detail: { tags, summary: 'Start a stopped vm' },
    body: Type.Optional(VmStart),
    response: { 200: Vm },
    faults: [
      ...one,
      'vm_wrong_state',
      'capacity_exhausted',
      'vm_start_failed',
      'vm_restore_failed',
      'agent_unavailable',
      'kernel_not_found',
      'image_not_found',
      'hypervisor_unavailable',
      'workload_missing',
      'vm_deleted',
    ],
  }),
  'vm.stop': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/stop',
    detail: { tags, summary: 'Stop a vm: agent, then power button, then kill' },
    body: Type.Optional(VmStop),
    response: { 200: Vm },
    faults: [...one, 'vm_wrong_state', 'stop_timeout', 'vm_deleted'],
  }),
  'vm.restart': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/restart',
    detail: { tags, summary: 'Stop and start a vm' },
    body: Type.Optional(VmStop),
    response: { 200: Vm },
    faults: [
      ...one,
      'vm_wrong_state',
      'stop_timeout',
      'capacity_exhausted',
      'vm_start_failed',
      'kernel_not_found',
      'image_not_found',
      'hypervisor_unavailable',
      'workload_missing',
      'vm_deleted',
    ],
  }),
  'vm.pause': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/pause',
    detail: { tags, summary: 'Halt the virtual CPUs; memory stays' },
    response: { 200: Vm },
    faults: [...one, 'vm_wrong_state'],
  }),
  'vm.resume': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/resume',
    detail: { tags, summary: 'Run a paused vm on' },
    response: { 200: Vm },
    faults: [...one, 'vm_wrong_state', 'agent_unavailable'],
  }),
  'vm.standby': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/standby',
    detail: { tags, summary: 'Move the memory of a vm to disk and end its machine' },
    response: { 200: Vm },
    faults: [...one, 'vm_wrong_state', 'hypervisor_unable', 'snapshot_failed', 'disk_exhausted'],
  }),
  'vm.restore': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/restore',
    detail: { tags, summary: 'Run a vm in standby on, from where it stood' },
    response: { 200: Vm },
    faults: [
      ...one,
      'vm_wrong_state',
      'capacity_exhausted',
      'hypervisor_unavailable',
      'vm_restore_failed',
      'agent_unavailable',
      'vm_deleted',
    ],
  }),
  'vm.fork': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/fork',
    detail: {
      tags,
      summary: 'Clone a vm, running, in standby or stopped',
      description:
        'Each clone has a disk, name, CID, MAC address, machine-id and random numbers of its own, and is told so before anything in it can be reached.',
    },
    body: Type.Optional(VmFork),
    response: { 201: VmForks },
    faults: [
      ...one,
      'vm_wrong_state',
      'vm_exists',
      'capacity_exhausted',
      'hypervisor_unable',
      'hypervisor_unavailable',
      'snapshot_failed',
      'disk_exhausted',
      'vm_restore_failed',
      'vm_start_failed',
      'agent_unavailable',
      'vm_deleted',
    ],
  }),
  'vm.wait': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/wait',
    detail: { tags, summary: 'Wait until a vm is ready, stopped or deleted' },
    params: VmRef,
    query: WaitQuery,
    response: { 200: Vm },
    faults: [...one, 'wait_timeout', 'vm_ended'],
    scope: 'read',
  }),
  'vm.exec': operation({
    method: 'POST',
    path: '/api/v1/vms/:name/exec',
    detail: { tags, summary: 'Run a command and answer with its output' },
    params: VmRef,
    body: ExecRun,
    response: { 200: ExecResult },
    faults: [...running, 'guest_path_not_found', 'guest_user_not_found', 'guest_refused'],
    scope: 'exec',
  }),
  'vm.exec.stream': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/exec',
    detail: { tags, summary: 'Run a command over one WebSocket' },
    params: VmRef,
    response: {},
    faults: running,
    scope: 'exec',
    stream: 'websocket',
  }),
  'vm.attach': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/attach',
    detail: { tags, summary: 'Attach to the workload over one WebSocket' },
    params: VmRef,
    response: {},
    faults: running,
    scope: 'exec',
    stream: 'websocket',
  }),
  'vm.forward': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/forward',
    detail: { tags, summary: 'One TCP or Unix connection into the guest over a WebSocket' },
    params: VmRef,
    query: Type.Object({
      port: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535 })),
      unix: Type.Optional(GuestPath),
    }),
    response: {},
    faults: running,
    scope: 'exec',
    stream: 'websocket',
  }),
  'vm.console': operation({
    method: 'GET',
    path: '/ws/v1/vms/:name/console',
    detail: { tags, summary: 'The serial console, both ways, over a WebSocket' },
    params: VmRef,
    response: {},
    faults: one,
    scope: 'exec',
    stream: 'websocket',
  }),
  'vm.logs': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/logs',
    detail: { tags, summary: 'Logs as server-sent events, one LogLine each' },
    params: VmRef,
    query: LogQuery,
    response: {},
    faults: [...one, 'since_invalid'],
    scope: 'read',
    stream: 'sse',
  }),
  'vm.copy.in': operation({
    method: 'PUT',
    path: '/api/v1/vms/:name/files',
    detail: { tags, summary: 'Unpack a tar stream into a folder of the guest' },
    params: VmRef,
    query: Type.Object({ path: GuestPath, owner: Type.Optional(oneOf('keep', 'root')) }),
    response: { 200: Type.Object({ entries: Type.Integer(), bytes: Type.Integer() }) },
    faults: [...running, 'guest_path_not_found', 'guest_refused', 'archive_invalid'],
    scope: 'exec',
    stream: 'upload',
  }),
  'vm.copy.out': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/files',
    detail: { tags, summary: 'A file or folder of the guest as a tar stream' },
    params: VmRef,
    query: Type.Object({ path: GuestPath, follow: Type.Optional(Type.Boolean({ default: false })) }),
    response: {},
    faults: [...running, 'guest_path_not_found', 'guest_refused'],
    scope: 'exec',
    stream: 'download',
  }),
  'vm.stat': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/stat',
    detail: { tags, summary: 'What stands at a path of the guest' },
    params: VmRef,
    query: Type.Object({ path: GuestPath, follow_links: Type.Optional(Type.Boolean({ default: false })) }),
    response: { 200: FileStat },
    faults: [...running, 'guest_refused'],
    scope: 'exec',
  }),
  'vm.files': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/list',
    detail: { tags, summary: 'The entries of a folder of the guest' },
    params: VmRef,
    query: Type.Object({
      path: GuestPath,
      limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 10_000, default: 1000 })),
    }),
    response: { 200: FileList },
    faults: [...running, 'guest_path_not_found', 'guest_refused'],
    scope: 'exec',
  }),
  'vm.stats': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/stats',
    detail: { tags, summary: 'Measures of the guest and of its processes on the host' },
    params: VmRef,
    response: { 200: VmStats },
    faults: running,
    scope: 'read',
  }),
  'vm.proxy': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/agent/*',
    detail: { tags, summary: "Any method: HTTP to the workload's port; healthz to the agent" },
    response: {},
    faults: [...running, 'port_undeclared', 'proxy_failed', 'upgrade_unsupported'],
    scope: 'exec',
    stream: 'download',
  }),
} as const
