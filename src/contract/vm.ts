import { Type, type Static } from '@sinclair/typebox'
import { nounEvents } from './event.ts'
import { ARGUMENTS_JSON_MAX, Argv, Env } from './guest.ts'
import { defaulted, named } from './schema.ts'
import { Nothing, oneOf, operation, Timestamp } from './operation.ts'
import { Egress } from './network.ts'
import { Publish } from './port.ts'
import { ONE_VM, VmRef } from './vm-ref.ts'
import { Metadata, NewVmName, SHOWN_FIELDS, VmCreate, VmName } from './vm-spec.ts'
import { VmListQuery } from './vm-list.ts'
import { WALLS } from './wall.ts'
import { VmState } from './vm-state.ts'

export const Vm = named(
  'Vm',
  Type.Object({
    id: Type.Integer(),
    uid: Type.String({ pattern: '^vm_[0-9a-z]{20}$' }),
    name: VmName,
    status: VmState,
    status_message: Type.Union([Type.String(), Type.Null()], {
      description: 'Why the vm is in this state, where there is a reason',
    }),
    runtime: Type.String(),
    plugin: Type.Union([Type.String(), Type.Null()]),
    image_digest: Type.String(),
    kernel: Type.String(),
    hypervisor: Type.String(),
    pid: Type.Union([Type.Integer(), Type.Null()]),
    ip_address: Type.String(),
    mac_address: Type.String(),
    vsock_cid: Type.Integer(),
    serial_socket: Type.String(),
    walls: Type.Union([Type.Array(oneOf(...WALLS)), Type.Null()], {
      description:
        'What stands between its machine and the host, as far as this host allows it; null without a machine',
    }),
    ...SHOWN_FIELDS,
    env_names: Type.Array(Type.String(), { description: 'Names only: values may be secrets' }),
    forked_from: Type.Union([Type.String(), Type.Null()], { description: 'uid of the vm that this one is a clone of' }),
    exit_code: Type.Union([Type.Integer(), Type.Null()]),
    exit_signal: Type.Union([Type.Integer(), Type.Null()]),
    exit_message: Type.Union([Type.String(), Type.Null()]),
    boot_ms: Type.Union([Type.Integer(), Type.Null()], {
      description: "From the start of the VMM to the agent's ready",
    }),
    gen: Type.Integer({ description: 'Grows with every change of this record' }),
    created_at: Timestamp,
    updated_at: Timestamp,
    started_at: Type.Union([Timestamp, Type.Null()]),
    stopped_at: Type.Union([Timestamp, Type.Null()]),
  }),
)
export type Vm = Static<typeof Vm>

export const VmStop = named(
  'VmStop',
  Type.Object(
    {
      timeout_s: Type.Optional(
        Type.Integer({ minimum: 0, maximum: 3600, description: "Grace; the vm's own where absent" }),
      ),
      kill: defaulted(
        Type.Boolean({
          description: 'End the machine when the grace is over; without it the vm stays and the stop fails',
        }),
        true,
      ),
    },
    { additionalProperties: false },
  ),
)
export type VmStop = Static<typeof VmStop>

/** A vm may be forked this many times by one request. */
export const FORKS_MAX = 64
export const VmFork = named(
  'VmFork',
  Type.Object(
    {
      name: Type.Optional(NewVmName),
      count: defaulted(
        Type.Integer({
          minimum: 1,
          maximum: FORKS_MAX,
          description: 'How many clones; of more than one, the name gets -1, -2 and so on behind it',
        }),
        1,
      ),
      target_state: Type.Optional(oneOf('running', 'standby', 'stopped')),
      metadata: Type.Optional(Metadata),
    },
    {
      additionalProperties: false,
      description: "target_state is the source's own where absent; `stopped` clones the disk alone",
    },
  ),
)
export type VmFork = Static<typeof VmFork>

/** What became of the clones: one that failed has left nothing behind. */
export const VmForks = named(
  'VmForks',
  Type.Object({
    vms: Type.Array(Vm),
    failed: Type.Array(Type.Object({ name: Type.String(), code: Type.String(), message: Type.String() })),
  }),
)
export type VmForks = Static<typeof VmForks>

/** What of a vm may change while it runs; what is absent stays. */
export const VmUpdate = named(
  'VmUpdate',
  Type.Object(
    {
      publish: Type.Optional(
        Type.Array(Publish, {
          maxItems: 64,
          description: 'Ports of the host that lead into it, in the place of those there are',
        }),
      ),
      egress: Type.Optional(Egress),
      network_bandwidth_download: Type.Optional(VmCreate.properties.network_bandwidth_download),
      network_bandwidth_upload: Type.Optional(VmCreate.properties.network_bandwidth_upload),
    },
    { additionalProperties: false },
  ),
)
export type VmUpdate = Static<typeof VmUpdate>

/** Loosened on start: what the next run of the workload shall be; absent = as before (H8). */
export const VmStart = named(
  'VmStart',
  Type.Object(
    {
      entrypoint: Type.Optional(Argv),
      cmd: Type.Optional(Argv),
      env: Type.Optional(Env),
    },
    { additionalProperties: false },
  ),
)
export type VmStart = Static<typeof VmStart>

export const WaitFor = oneOf('ready', 'stopped', 'exit', 'deleted')
export const WaitQuery = Type.Object({
  for: defaulted(WaitFor, 'exit'),
  timeout_s: defaulted(Type.Number({ minimum: 0, maximum: 86_400 }), 60),
})
export type WaitQuery = Static<typeof WaitQuery>

/** What becomes of a vm. */
export const vmEvents = nounEvents(
  'vm',
  [
    'VM_CREATED',
    'VM_STARTING',
    'VM_RUNNING',
    'VM_PAUSED',
    'VM_STOPPING',
    'VM_STOPPED',
    'VM_CRASHED',
    'VM_UNKNOWN',
    'VM_STANDBY',
    'VM_DELETED',
    'VM_CREATE_FAILED',
  ],
  Type.Object({
    status: defaulted(Type.String(), ''),
    ip_address: defaulted(Type.String(), ''),
    mac_address: defaulted(Type.String(), ''),
    pid: defaulted(Type.Union([Type.Integer(), Type.Null()]), null),
  }),
)
export type VmEventType = (typeof vmEvents)['types'][number]

/** The reasons why a vm cannot have the cards that it asks for. */
const CARD_FAULTS = [
  'network_not_found',
  'network_ambiguous',
  'network_invalid',
  'network_conflict',
  'network_unable',
  'network_exhausted',
  'network_address_taken',
  'port_in_use',
  'port_denied',
] as const

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
    bodyMax: ARGUMENTS_JSON_MAX,
    response: { 201: Vm },
    idempotent: true,
    scope: 'admin',
    faults: [
      'vm_exists',
      'image_not_found',
      'image_damaged',
      'image_ambiguous',
      'kernel_not_found',
      'kernel_ambiguous',
      'capacity_exhausted',
      'hypervisor_unavailable',
      'vm_start_failed',
      'idempotency_conflict',
      'workload_missing',
      'disk_exhausted',
      'vm_deleted',
      ...CARD_FAULTS,
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
    faults: ONE_VM,
    scope: 'read',
  }),
  'vm.delete': operation({
    ...admin,
    method: 'DELETE',
    path: '/api/v1/vms/:name',
    detail: { tags, summary: 'End a vm and delete all that is its own' },
    response: { 204: Nothing },
    faults: [...ONE_VM, 'vm_wrong_state'],
  }),
  'vm.start': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/start',
    detail: { tags, summary: 'Start a stopped vm' },
    body: Type.Optional(VmStart),
    bodyMax: ARGUMENTS_JSON_MAX,
    response: { 200: Vm },
    faults: [
      ...ONE_VM,
      'vm_wrong_state',
      'capacity_exhausted',
      'vm_start_failed',
      'vm_restore_failed',
      'agent_unavailable',
      'guest_busy',
      'kernel_not_found',
      'image_not_found',
      'image_damaged',
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
    faults: [...ONE_VM, 'vm_wrong_state', 'stop_timeout', 'vm_deleted'],
  }),
  'vm.update': operation({
    ...admin,
    method: 'PATCH',
    path: '/api/v1/vms/:name',
    detail: { tags, summary: 'Change what of a vm may change while it runs' },
    body: VmUpdate,
    response: { 200: Vm },
    faults: [...ONE_VM, 'port_in_use', 'port_denied', 'network_unable', 'vm_deleted'],
  }),
  'vm.restart': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/restart',
    detail: { tags, summary: 'Stop and start a vm' },
    body: Type.Optional(VmStop),
    response: { 200: Vm },
    faults: [
      ...ONE_VM,
      'vm_wrong_state',
      'stop_timeout',
      'capacity_exhausted',
      'vm_start_failed',
      'kernel_not_found',
      'image_not_found',
      'image_damaged',
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
    faults: [...ONE_VM, 'vm_wrong_state', 'machine_silent'],
  }),
  'vm.resume': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/resume',
    detail: { tags, summary: 'Run a paused vm on' },
    response: { 200: Vm },
    faults: [...ONE_VM, 'vm_wrong_state', 'agent_unavailable', 'guest_busy', 'machine_silent'],
  }),
  'vm.standby': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/standby',
    detail: { tags, summary: 'Move the memory of a vm to disk and end its machine' },
    response: { 200: Vm },
    faults: [...ONE_VM, 'vm_wrong_state', 'hypervisor_unable', 'snapshot_failed', 'disk_exhausted', 'machine_silent'],
  }),
  'vm.restore': operation({
    ...admin,
    method: 'POST',
    path: '/api/v1/vms/:name/restore',
    detail: { tags, summary: 'Run a vm in standby on, from where it stood' },
    response: { 200: Vm },
    faults: [
      ...ONE_VM,
      'vm_wrong_state',
      'capacity_exhausted',
      'hypervisor_unavailable',
      'vm_restore_failed',
      'agent_unavailable',
      'guest_busy',
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
    idempotent: true,
    faults: [
      ...ONE_VM,
      'idempotency_conflict',
      'vm_wrong_state',
      'vm_exists',
      'capacity_exhausted',
      'hypervisor_unable',
      'hypervisor_unavailable',
      'snapshot_failed',
      'disk_exhausted',
      'machine_silent',
      'vm_restore_failed',
      'vm_start_failed',
      'agent_unavailable',
      'guest_busy',
      'vm_deleted',
      ...CARD_FAULTS,
    ],
  }),
  'vm.wait': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/wait',
    detail: { tags, summary: 'Wait until a vm is ready, stopped or deleted' },
    params: VmRef,
    query: WaitQuery,
    response: { 200: Vm },
    faults: [...ONE_VM, 'wait_timeout', 'vm_ended'],
    scope: 'read',
  }),
} as const
