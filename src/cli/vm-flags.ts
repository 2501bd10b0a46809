import { VmCreate } from '../contract/vm-spec.ts'
import { absolute, rate, type Values } from './flags.ts'
import { ENV_FLAGS, readEnv } from './guest-flags.ts'
import { defined, schemaFlags } from './schema-flags.ts'

/** What a new vm can be told, read off the contract; here stands only what a flag says otherwise than its field. */
const FIELDS = schemaFlags(VmCreate, {
  omit: ['image', 'cmd', 'env', 'tty', 'hold', 'auto_remove', 'plugin', 'runtime'],
  more: {
    name: { placeholder: 'NAME', help: 'Name of the vm: a-z, 0-9, inner dashes, at most 63, not digits alone' },
    cpu_cores: { aliases: ['cpus'] },
    memory_mb: { short: 'm' },
    workdir: { flag: absolute('Folder that the command starts in', 'DIR', { short: 'w', aliases: ['cwd'] }) },
    user: { short: 'u', placeholder: 'USER' },
    entrypoint: { help: 'Program instead of the image\'s; a JSON array gives it arguments, "" none' },
    port: { short: 'p', placeholder: 'PORT' },
    metadata: { help: 'A label', short: 'l', aliases: ['label'] },
    kernel: { placeholder: 'KERNEL' },
    hypervisor: { help: "Driver (the daemon's)" },
    disk_io_bps: {
      flag: rate("What the vm's own disks may read and write a second, after a burst, as 100MB/s (the daemon's)"),
    },
    network: {
      help: "vsock: no network but ours; user: QEMU's, which can reach this host's loopback (vsock)",
    },
  },
})
export const VM_FLAGS = { ...FIELDS.flags, ...ENV_FLAGS }

/** Flags → the body of `vm.create`. */
export const vmCreateOf = (
  image: string,
  flags: Values<typeof VM_FLAGS>,
  cmd: readonly string[] | undefined,
  own: Readonly<Record<string, string | undefined>>,
): VmCreate => ({
  image,
  ...FIELDS.said(flags),
  ...defined({ cmd: cmd?.length === 0 ? undefined : cmd && [...cmd], env: readEnv(flags, own) }),
})
