import { OptionalKind, Type, type Static, type TSchema, type TUnsafe } from '@sinclair/typebox'
import { HypervisorName } from './hypervisor.ts'
import { Argv, Env, GuestPath, GuestUser } from './guest.ts'
import { oneOf } from './operation.ts'
import { Egress, IpAddress, Mac, NetworkName } from './network.ts'
import { Publish } from './port.ts'
import { defaulted, fill, type Filled, named } from './schema.ts'

/** Bounds of one vm, as its schema says them. The host's own capacity is checked apart. */
export const VM_LIMITS = {
  cpuCores: 64,
  memoryMbMin: 64,
  memoryMbMax: 1024 * 1024,
  diskMbMin: 64,
  diskMbMax: 4 * 1024 * 1024,
} as const

/** Bytes a second, which no disk has. */
const RATE_MAX = 2 ** 40

/** A DNS label's length: RFC 1035, section 2.3.4. */
export const VM_NAME_MAX = 63
export const VmName = Type.String({
  pattern: '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$',
  maxLength: VM_NAME_MAX,
  description: 'A DNS label: a-z, 0-9, inner dashes, at most 63',
})
/** A name that is given now. One of digits alone would stand for the number of another vm. */
export const NewVmName = Type.String({
  pattern: '^(?!\\d+$)[a-z0-9]([a-z0-9-]*[a-z0-9])?$',
  maxLength: VM_NAME_MAX,
  description: 'A DNS label: a-z, 0-9, inner dashes, at most 63, and not digits alone',
})
export const Metadata = named(
  'Metadata',
  Type.Record(Type.String({ pattern: '^[A-Za-z0-9._/-]{1,128}$' }), Type.String({ maxLength: 1024 }), {
    additionalProperties: false,
  }),
)

/**
 * How a card is connected: by a network with an address that the host sets (`bridged`) or that the guest asks for
 * (`dhcp`), by QEMU's own network (`user`), or not at all (`vsock`).
 */
export const NetworkMode = oneOf('vsock', 'user', 'bridged', 'dhcp')

/** One card more than the first. */
const CARD = {
  network: Type.Optional({ ...NetworkName, description: 'The network; the default one where absent' }),
  ip_address: Type.Optional({ ...IpAddress, description: 'The address; the next that is free where absent' }),
  ip6_address: Type.Optional({ ...IpAddress, description: 'Given with the IPv4 address, never asked for' }),
  mac_address: Type.Optional(Mac),
  egress: Type.Optional({ ...Egress, description: 'What it may reach; as its network where absent' }),
}
const Card = Type.Object(
  { mode: defaulted(oneOf('bridged', 'dhcp'), 'bridged'), ...CARD },
  { additionalProperties: false },
)
/** Cards of one vm at most: the places on talon's bus. */
export const CARDS_MAX = 8

/** How fast a card is; both ways are said alike. */
const bandwidth = (way: string) =>
  defaulted(
    Type.Union(
      [
        Type.Integer({ minimum: 0, maximum: RATE_MAX }),
        Type.String({
          maxLength: 32,
          pattern: '^\\d+(\\.\\d+)? ?([kKmMgG]?b(ps|it/s)|(([kKmMgG]([iI]?B)?|[bB])?(/s)?))$',
        }),
      ],
      {
        description: `What each card ${way} a second: bytes, or a text like 100Mbps or 12MB/s; 0 = the share of the host's uplink that its CPUs are of the host's`,
      },
    ),
    0,
  )

/** How much machine a vm is, and on what it runs. */
const Compute = Type.Object({
  cpu_cores: defaulted(Type.Integer({ minimum: 1, maximum: VM_LIMITS.cpuCores, description: 'Virtual CPUs' }), 1),
  memory_mb: defaulted(
    Type.Integer({
      minimum: VM_LIMITS.memoryMbMin,
      maximum: VM_LIMITS.memoryMbMax,
      description: 'Guest memory, MiB',
    }),
    512,
  ),
  forkable: defaulted(
    Type.Boolean({ description: "Keep the guest's memory where forks can share it: a fork copies none of it" }),
    false,
  ),
  network_bandwidth_download: bandwidth('receives'),
  network_bandwidth_upload: bandwidth('sends'),
  kernel: Type.Optional(
    Type.String({ maxLength: 128, description: 'Kernel by name, version or digest; the default kernel where absent' }),
  ),
  kernel_cmdline: defaulted(
    Type.String({
      maxLength: 1024,
      pattern: '^[^\\u0000-\\u001f\\u007f]*$',
      description: 'Appended to the kernel command line',
    }),
    '',
  ),
  hypervisor: Type.Optional(HypervisorName),
})

/** What runs in the guest. */
const Workload = Type.Object({
  entrypoint: Type.Optional(Argv),
  cmd: Type.Optional(Argv),
  env: defaulted(Env, {}),
  workdir: Type.Optional(GuestPath),
  user: Type.Optional(GuestUser),
  tty: defaulted(Type.Boolean({ description: 'Give the workload a terminal' }), false),
  hold: defaulted(Type.Boolean({ description: 'Start the workload when somebody attaches' }), false),
  port: Type.Optional(
    Type.Integer({ minimum: 1, maximum: 65_535, description: 'Port of the workload, for the proxy under /agent/' }),
  ),
})

const Storage = Type.Object({
  image: defaulted(Type.String({ minLength: 1, maxLength: 255, description: 'Image by name or digest' }), 'base'),
  disk_mb: defaulted(
    Type.Integer({
      minimum: VM_LIMITS.diskMbMin,
      maximum: VM_LIMITS.diskMbMax,
      description: 'Writable disk over the image, MiB, sparse',
    }),
    10_240,
  ),
  shm_size_mb: defaulted(
    Type.Integer({
      minimum: 1,
      maximum: VM_LIMITS.memoryMbMax,
      description: "Size of /dev/shm, MiB, which its files take of the guest's memory as they are written",
    }),
    64,
  ),
  disk_io_bps: defaulted(
    Type.Union(
      [
        Type.Integer({ minimum: 0, maximum: RATE_MAX }),
        Type.String({ maxLength: 32, pattern: '^\\d+(\\.\\d+)? ?([kKmMgG]([iI]?[bB])?|[bB])?(/s)?$' }),
      ],
      {
        description:
          "What the vm's own disks may read and write a second, after a burst: bytes, or a text like 100MB/s, at least 64 KiB; 0 = as the daemon says",
      },
    ),
    0,
  ),
})

const Network = Type.Object({ mode: defaulted(NetworkMode, 'bridged'), ...CARD }, { additionalProperties: false })

/** How a vm lives and what it is labelled with. */
const Policy = Type.Object({
  auto_remove: defaulted(Type.Boolean({ description: 'Delete the vm when it has stopped' }), false),
  stop_timeout_s: defaulted(
    Type.Integer({ minimum: 0, maximum: 3600, description: 'Grace before a stop becomes a kill' }),
    5,
  ),
  metadata: defaulted(Metadata, {}),
  plugin: Type.Optional(Type.String({ maxLength: 63 })),
  runtime: Type.Optional(Type.String({ maxLength: 63 })),
})

/** The groups of a specification whose fields stand flat on the wire; `network` and `nics` stand there as they are. */
const GROUPS = { compute: Compute, workload: Workload, storage: Storage, policy: Policy } as const

const FIELDS = {
  ...Compute.properties,
  ...Workload.properties,
  ...Storage.properties,
  ...Policy.properties,
  network: Type.Optional({ ...Network, description: "The first card; by the daemon's default where absent" }),
  publish: defaulted(Type.Array(Publish, { maxItems: 64, description: 'Ports of the host that lead into it' }), []),
  nics: defaulted(Type.Array(Card, { maxItems: CARDS_MAX - 1, description: 'Further cards' }), []),
} as const

/** A specification as the wire and the rows have it: flat. */
export const VmFields = Type.Object(FIELDS)
export type VmFields = Filled<typeof VmFields>

/** What a caller may say of a new vm. A field is written once, in its group above; all else is read off it. */
export const VmCreate = named(
  'VmCreate',
  Type.Object({ name: Type.Optional(NewVmName), ...FIELDS }, { additionalProperties: false }),
)
export type VmCreate = Static<typeof VmCreate>

/** The first card of a vm, and how it is connected. */
export type VmNetwork = Filled<typeof Network>
/** A further card. */
export type VmCard = Filled<typeof Card>

/** What is true of a vm: every default filled, in groups. */
export interface VmSpec {
  readonly compute: Filled<typeof Compute>
  readonly workload: Filled<typeof Workload>
  readonly storage: Filled<typeof Storage>
  readonly policy: Filled<typeof Policy>
  readonly network: VmNetwork
  readonly nics: readonly VmCard[]
  readonly publish: readonly string[]
}

/** Each field with its group. */
const PLACES = Object.entries(GROUPS).flatMap(([group, schema]) =>
  Object.keys(schema.properties).map((name) => [name, group as keyof typeof GROUPS] as const),
)

/** Puts filled fields into their groups. */
export const specOf = (fields: VmFields): VmSpec => {
  const groups: Record<keyof typeof GROUPS, Record<string, unknown>> = {
    compute: {},
    workload: {},
    storage: {},
    policy: {},
  }
  for (const [name, group] of PLACES) {
    const value = (fields as Readonly<Record<string, unknown>>)[name]
    if (value !== undefined) groups[group][name] = value
  }
  const { network = { mode: 'vsock' }, nics, publish } = fields
  return {
    ...(groups as unknown as Omit<VmSpec, 'network' | 'nics' | 'publish'>),
    network: fill(Network, network),
    nics: nics.map((one) => fill(Card, one)),
    publish,
  }
}

/** Takes a specification out of its groups: what the wire shows and a row keeps. */
export const fieldsOf = ({ compute, workload, storage, policy, network, nics, publish }: VmSpec): VmFields => ({
  ...compute,
  ...workload,
  ...storage,
  ...policy,
  network,
  nics: [...nics],
  publish: [...publish],
})

/** Fields that are not shown of a vm: what may hold secrets, and what only a boot uses. */
const HIDDEN = ['env', 'hold', 'workdir', 'user', 'kernel', 'hypervisor', 'plugin', 'runtime'] as const
type Hidden = (typeof HIDDEN)[number]
type Shown = {
  readonly [K in Exclude<keyof VmFields, Hidden>]-?: undefined extends VmFields[K]
    ? Exclude<VmFields[K], undefined> | null
    : VmFields[K]
}
const shownFields = Object.entries(FIELDS).filter(([name]) => !(HIDDEN as readonly string[]).includes(name))

/** Makes the schema of a field as it is shown: always there, null where it has no default and was not said. */
const shown = ({ [OptionalKind]: _optional, default: value, ...field }: TSchema): TSchema =>
  value === undefined ? Type.Union([field as TSchema, Type.Null()]) : (field as TSchema)

/** The part of a specification that a vm shows. */
export const SHOWN_FIELDS = Object.fromEntries(shownFields.map(([name, field]) => [name, shown(field)])) as unknown as {
  readonly [K in keyof Shown]: TUnsafe<Shown[K]>
}

/** Shows a specification: flat, without what is hidden. */
export const showSpec = (spec: VmSpec): Shown => {
  const fields = fieldsOf(spec) as unknown as Readonly<Record<string, unknown>>
  return Object.fromEntries(shownFields.map(([name]) => [name, fields[name] ?? null])) as unknown as Shown
}
