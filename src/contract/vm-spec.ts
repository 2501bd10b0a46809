import { Type, type Static } from '@sinclair/typebox'
import { HypervisorName } from './hypervisor.ts'
import { Argv, Env, GuestPath, GuestUser } from './guest.ts'
import { oneOf } from './operation.ts'

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
/** A name that is given now. One of digits alone would stand for the number of another vm. */
export const NewVmName = Type.String({
  pattern: '^(?!\\d+$)[a-z0-9]([a-z0-9-]*[a-z0-9])?$',
  maxLength: VM_NAME_MAX,
  description: 'A DNS label: a-z, 0-9, inner dashes, at most 63, and not digits alone',
})
export const Metadata = Type.Record(
  Type.String({ pattern: '^[A-Za-z0-9._/-]{1,128}$' }),
  Type.String({ maxLength: 1024 }),
  { additionalProperties: false },
)

export const NetworkMode = oneOf('vsock', 'user')

/** What a caller may say. What has a default is optional here, and always present in `VmSpec`. */
export const VmCreate = Type.Object(
  {
    name: Type.Optional(NewVmName),
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
    hypervisor: Type.Optional(HypervisorName),
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
  readonly hypervisor?: HypervisorName
  readonly plugin?: string
  readonly runtime?: string
}
