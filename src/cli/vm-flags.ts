import { VmCreate, VM_LIMITS } from '../contract/vm-spec.ts'
import { bySchema, list, mebibytes, duration, text, usageInvalid, yes } from './flags.ts'
import { ENV_FLAGS, readEnv, USER_FLAGS } from './guest-flags.ts'
import type { Values } from './flags.ts'

const of = VmCreate.properties

/** What a new vm can be told, from the contract: bounds and defaults stand there once. */
export const VM_FLAGS = {
  name: bySchema(of.name, {
    placeholder: 'NAME',
    help: 'Name of the vm: a-z, 0-9, inner dashes, at most 63, not digits alone',
  }),
  cpuCores: bySchema(of.cpu_cores, { aliases: ['cpus'] }),
  memory: mebibytes('Guest memory (512m)', VM_LIMITS.memoryMbMin, VM_LIMITS.memoryMbMax, { short: 'm' }),
  disk: mebibytes('Writable disk over the image, sparse (10g)', VM_LIMITS.diskMbMin, VM_LIMITS.diskMbMax),
  ...ENV_FLAGS,
  ...USER_FLAGS,
  entrypoint: text('Program instead of the image\'s; a JSON array gives it arguments, "" none', 'PROGRAM'),
  network: bySchema(of.network.properties.mode, {
    help: "vsock: no network but ours; user: QEMU's, which can reach this host's loopback (vsock)",
  }),
  port: bySchema(of.port, { short: 'p', placeholder: 'PORT' }),
  metadata: list('A label', 'KEY=VALUE', { short: 'l', aliases: ['label'] }),
  forkable: yes('Keep memory where forks can share it'),
  stopTimeout: duration('Grace before a stop becomes a kill (5s)', 3600_000),
  kernel: bySchema(of.kernel, { placeholder: 'KERNEL' }),
  kernelCmdline: bySchema(of.kernel_cmdline, {}),
  hypervisor: bySchema(of.hypervisor, { help: "Driver (the daemon's)" }),
} as const

/** `sh` → one word, `["sh", "-c"]` → as it is, an empty text → none. */
export const readArgv = (flag: string, said: string): string[] => {
  if (said === '') return []
  if (!said.startsWith('[')) return [said]
  try {
    const words: unknown = JSON.parse(said)
    if (Array.isArray(words) && words.every((word) => typeof word === 'string')) return words
  } catch {
    /* said below */
  }
  throw usageInvalid({ reason: `Cannot use --${flag} ${said}: expected one program, or a JSON array of strings` })
}

export const readMetadata = (said: readonly string[]): Record<string, string> =>
  Object.fromEntries(
    said.map((one) => {
      const equals = one.indexOf('=')
      if (equals <= 0) throw usageInvalid({ reason: `Cannot use --metadata "${one}": expected KEY=VALUE` })
      return [one.slice(0, equals), one.slice(equals + 1)]
    }),
  )

/** Flags → the body of `vm.create`. What is not said is not sent: the daemon has the defaults. */
export const vmCreateOf = (
  image: string,
  flags: Values<typeof VM_FLAGS>,
  cmd: readonly string[] | undefined,
  own: Readonly<Record<string, string | undefined>>,
): VmCreate => {
  const env = readEnv(flags, own)
  return {
    image,
    ...(flags.name !== undefined && { name: flags.name }),
    ...(flags.cpuCores !== undefined && { cpu_cores: flags.cpuCores }),
    ...(flags.memory !== undefined && { memory_mb: flags.memory }),
    ...(flags.disk !== undefined && { disk_mb: flags.disk }),
    ...(flags.entrypoint !== undefined && { entrypoint: readArgv('entrypoint', flags.entrypoint) }),
    ...(cmd !== undefined && cmd.length > 0 && { cmd: [...cmd] }),
    ...(env && { env }),
    ...(flags.workdir !== undefined && { workdir: flags.workdir }),
    ...(flags.user !== undefined && { user: flags.user }),
    ...(flags.port !== undefined && { port: flags.port }),
    ...(flags.network !== undefined && { network: { mode: flags.network } }),
    ...(flags.kernel !== undefined && { kernel: flags.kernel }),
    ...(flags.kernelCmdline !== undefined && { kernel_cmdline: flags.kernelCmdline }),
    ...(flags.hypervisor !== undefined && { hypervisor: flags.hypervisor }),
    ...(flags.forkable && { forkable: true }),
    ...(flags.stopTimeout !== undefined && { stop_timeout_s: Math.ceil(flags.stopTimeout / 1000) }),
    ...(flags.metadata !== undefined && { metadata: readMetadata(flags.metadata) }),
  }
}
