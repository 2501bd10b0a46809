import { readFileSync, statSync } from 'node:fs'
import { checked, SyscallError } from './errno.ts'
import { host } from './host-library.ts'
import { cpuFlags } from './proc.ts'

/** `KvmProbe` of native/host/src/kvm.rs, field by field: all are 32-bit integers. */
export const KVM_PROBE_FIELDS = [
  'apiVersion',
  'vmErrno',
  'vcpusRecommended',
  'vcpusMax',
  'immediateExit',
  'readonlyMem',
  'irqchip',
  'splitIrqchip',
  'ioeventfd',
  'irqfd',
  'tscDeadline',
] as const

/** What `/dev/kvm` answers. Extensions: 0 is no. `vmErrno` is 0 where a VM can be made. */
export type KvmProbe = Readonly<Record<(typeof KVM_PROBE_FIELDS)[number], number>>

/** Asks `/dev/kvm`. @throws ENOENT, EACCES, ENXIO, ENODEV, EPERM: it cannot be opened */
export const kvmProbe = (): KvmProbe => {
  const values = new Int32Array(KVM_PROBE_FIELDS.length)
  checked(host().aerie_kvm_probe(values, values.byteLength), 'open', '/dev/kvm')
  return Object.fromEntries(KVM_PROBE_FIELDS.map((field, index) => [field, values[index] ?? 0])) as KvmProbe
}

/** Whether this process can run guests by KVM. */
export interface KvmSupport {
  readonly usable: boolean
  /** One sentence for people: why, or why not. */
  readonly reason: string
  /** What a person can do about it; absent where it is usable. */
  readonly fix?: string
  readonly probe: KvmProbe | undefined
}

const WHY: Readonly<Record<string, string>> = {
  ENOENT: '/dev/kvm is not there: the module kvm_intel or kvm_amd is not loaded',
  EACCES: '/dev/kvm is closed to this user: add it to the group "kvm"',
  EPERM: '/dev/kvm is closed to this process by its cgroup or sandbox',
  ENODEV: '/dev/kvm has no hardware behind it',
  ENXIO: '/dev/kvm has no hardware behind it',
}
const FIRMWARE = 'On bare metal enable VT-x or AMD-V in the firmware; in a VM ask for nested virtualisation'
const FIX: Readonly<Record<string, string>> = {
  ENOENT: `\`modprobe kvm_intel\` or \`modprobe kvm_amd\`, as root. Where that fails: ${FIRMWARE.charAt(0).toLowerCase()}${FIRMWARE.slice(1)}`,
  EPERM: 'Let the device through: `docker run --device /dev/kvm`, `DeviceAllow=/dev/kvm rw` in a unit of systemd',
  ENODEV: FIRMWARE,
  ENXIO: FIRMWARE,
}

/** Tells how /dev/kvm is opened to this user: by its group, where it has one of its own, else by an ACL. */
const openTo = (user: string, device = '/dev/kvm'): string => {
  const gid = statSync(device, { throwIfNoEntry: false })?.gid ?? 0
  const group = readFileSync('/etc/group', 'utf8')
    .split('\n')
    .map((line) => line.split(':'))
    .find((fields) => fields[2] === String(gid))?.[0]
  return gid === 0 || group === undefined
    ? `\`sudo setfacl -m u:${user}:rw ${device}\``
    : `\`sudo usermod -aG ${group} ${user}\`, then log in anew`
}

const fixOf = (code: string): string =>
  FIX[code] ?? (code === 'EACCES' ? openTo(process.env['USER'] || String(process.getuid?.() ?? 0)) : FIRMWARE)
const API_VERSION = 12 // Documentation/virt/kvm/api.rst, 4.1

/**
 * Tells whether KVM runs an unmodified Linux guest here: the CPU must show `vmx` or `svm` **and** `/dev/kvm` must
 * answer. The device alone proves nothing: a paravirtual KVM opens, makes VMs and vCPUs, and its guests hang for ever.
 */
export const kvmSupport = (flags: ReadonlySet<string> = cpuFlags(), ask: () => KvmProbe = kvmProbe): KvmSupport => {
  const extension = ['vmx', 'svm'].find((flag) => flags.has(flag))
  let probe: KvmProbe
  try {
    probe = ask()
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error
    return {
      usable: false,
      reason: WHY[error.code] ?? `/dev/kvm cannot be opened: ${error.code}`,
      fix: fixOf(error.code),
      probe: undefined,
    }
  }
  const no = (reason: string, fix = FIRMWARE): KvmSupport => ({ usable: false, reason, fix, probe })
  if (extension === undefined) return no('/dev/kvm answers, but the CPU shows neither vmx nor svm: a guest would hang')
  if (probe.apiVersion !== API_VERSION)
    return no(`/dev/kvm speaks version ${probe.apiVersion}, not ${API_VERSION}`, 'Run a newer kernel')
  if (probe.vmErrno !== 0) return no(`/dev/kvm makes no VM: ${new SyscallError(probe.vmErrno, 'KVM_CREATE_VM').code}`)
  return { usable: true, reason: `/dev/kvm answers and the CPU shows ${extension}`, probe }
}
