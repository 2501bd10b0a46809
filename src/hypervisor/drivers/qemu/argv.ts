import { createHash } from 'node:crypto'
import { numbered } from '../../../linux/inherited.ts'
import type { DiskSpec, MachineSpec, NicSpec } from '../../driver.ts'
import { VSOCK_PLUG, VSOCK_PORT } from './vsock-device.ts'

/** The QEMU of this host, and how it runs a guest. */
export interface QemuOptions {
  /** Absolute path of the program. */
  readonly program: string
  readonly accelerator: 'kvm' | 'tcg'
}

/** What QEMU inherits, by its own number; disks come behind. A later daemon that adopts it relies on them. */
export const FD = numbered('qmp', 'console', 'consoleLog', 'vhost', 'kernel', 'initramfs', 'qtest', 'devices', 'state')

/**
 * The set of descriptors by which QEMU names the file that it writes its devices into: its file system is empty by
 * then.
 */
export const DEVICES_SET = 2

/** The size of QEMU's cache of translated code, MiB: its default is a gigabyte. */
const TCG_CACHE_MIB = 128

/**
 * TCG runs a "rep movsb" byte by byte. A guest that is told that those are fast (erms, fsrm) copies and clears every
 * page with them: twice the time of a copy by words.
 */
const TCG_CPU = 'max,erms=off,fsrm=off'

/** Queues of a card at most. */
const QUEUES_MAX = 8
/** Counts the queues of a card: one a processor. */
export const queuesOf = (vcpus: number): number => Math.min(vcpus, QUEUES_MAX)

/**
 * Lists what a card on a link of the host's has beside the others: its MTU and its queues, each with two interrupts.
 */
const moreOfCard = (nic: NicSpec, vcpus: number): string => {
  if (nic.kind === 'user') return ''
  const queues = queuesOf(vcpus)
  return `,host_mtu=${nic.mtu}${queues > 1 ? `,mq=on,vectors=${2 * queues + 2}` : ''}`
}

/** Names the queues of a tap; its packets have no vhost to go by, which would need a device of the host's. */
const sayFds = (fds: readonly number[] | undefined): string => {
  if (fds === undefined || fds.length === 0) return ''
  return fds.length === 1 ? `,fd=${fds[0]},vhost=off` : `,fds=${fds.join(':')},vhost=off`
}

/**
 * Lists what the guest finds, the vsock device apart. A machine that was saved is loaded into one with the same of it,
 * or not at all.
 */
const hardware = (
  { accelerator }: QemuOptions,
  spec: Pick<MachineSpec, 'vcpus' | 'memoryMib' | 'disks' | 'nics'>,
): string[] => [
  '-cpu',
  accelerator === 'kvm' ? 'host,vmx=off,svm=off' : TCG_CPU,
  '-M',
  'q35,memory-backend=m0,usb=off,smm=off,vmport=off,graphics=off,suppress-vmdesc=on',
  '-m',
  `${spec.memoryMib}M`,
  '-smp',
  String(spec.vcpus),
  '-serial',
  'chardev:con',
  '-device',
  VSOCK_PORT,
  '-device',
  'virtio-rng-pci,rng=rng0',
  '-device',
  'vmgenid,guid=auto',
  ...spec.disks.flatMap((disk, index) => ['-device', `virtio-blk-pci,drive=d${index},serial=${disk.serial}`]),
  ...spec.nics.flatMap((nic, index) => [
    '-device',
    `virtio-net-pci,netdev=n${index},mac=${nic.mac},romfile=${moreOfCard(nic, spec.vcpus)}`,
  ]),
]

/** Makes a text that is another for every build of ours which gives guests other hardware. */
export const layoutOf = (options: QemuOptions): string =>
  createHash('sha256')
    .update(
      JSON.stringify([
        hardware(options, {
          vcpus: 1,
          memoryMib: 1,
          disks: [{ path: '', readOnly: false, serial: 'disk' }],
          nics: [{ kind: 'user', mac: '' }],
        }),
        VSOCK_PLUG,
      ]),
    )
    .digest('hex')
    .slice(0, 16)

/** The group whose limits the writable disks share. */
const THROTTLE = 'own'
/** How long they may go at several times the limit, and at how many: a boot, or an installation, is not slower. */
const BURST_S = 4
const BURST_TIMES = 3

const isThrottled = (spec: MachineSpec, disk: DiskSpec): boolean => spec.diskRate.bytesPerS > 0 && !disk.readOnly

/** Limits the disks in bytes; QEMU's throttle lets flushes through. */
const throttleGroup = (spec: MachineSpec): string[] =>
  spec.disks.some((disk) => isThrottled(spec, disk))
    ? [
        '-object',
        JSON.stringify({
          'qom-type': 'throttle-group',
          id: THROTTLE,
          limits: {
            'bps-total': spec.diskRate.bytesPerS,
            'bps-total-max': spec.diskRate.bytesPerS * BURST_TIMES,
            'bps-total-max-length': BURST_S,
          },
        }),
      ]
    : []

/**
 * Makes the arguments of a machine that starts, or of one that waits for what was saved: its vsock device is plugged in
 * later (`vsock-device.ts`). `disks` and `taps` are the numbers of its descriptors.
 */
export const argv = (
  options: QemuOptions,
  spec: MachineSpec,
  {
    disks,
    taps,
    restored,
  }: {
    readonly disks: readonly number[]
    /** The numbers of the queues of each card; none where it has no link of the host's. */
    readonly taps: readonly (readonly number[])[]
    readonly restored: boolean
  },
): string[] => [
  'qemu-system-x86_64',
  '-no-user-config',
  '-nodefaults',
  '-display',
  'none',
  '-no-reboot',
  '-action',
  'reboot=shutdown,shutdown=pause',
  '-uuid',
  spec.uuid,
  '-accel',
  options.accelerator === 'kvm' ? 'kvm' : `tcg,thread=multi,tb-size=${TCG_CACHE_MIB}`,
  '-kernel',
  `/proc/self/fd/${FD.kernel}`,
  '-initrd',
  `/proc/self/fd/${FD.initramfs}`,
  '-append',
  spec.cmdline,
  '-object',
  `memory-backend-memfd,id=m0,size=${spec.memoryMib}M,share=on`,
  '-object',
  'rng-builtin,id=rng0',
  '-chardev',
  `socket,id=qmp,fd=${FD.qmp},server=on,wait=off`,
  '-mon',
  'chardev=qmp,mode=control',
  '-add-fd',
  `fd=${FD.consoleLog},set=1`,
  '-add-fd',
  `fd=${FD.devices},set=${DEVICES_SET}`,
  // Holds the set: QEMU closes one that nobody uses when the daemon hangs up.
  '-chardev',
  `file,id=devices,path=/dev/fdset/${DEVICES_SET}`,
  '-chardev',
  `socket,id=con,fd=${FD.console},server=on,wait=off,logfile=/dev/fdset/1,logappend=on`,
  '-chardev',
  `socket,id=qtest,fd=${FD.qtest},server=on,wait=off`,
  '-qtest',
  'chardev:qtest',
  '-qtest-log',
  'none',
  '-chardev',
  `socket,id=${VSOCK_PLUG.chardev},fd=${FD.vhost}`,
  ...throttleGroup(spec),
  ...spec.disks.flatMap((disk, index) => [
    '-add-fd',
    `fd=${disks[index]},set=${index + 10}`,
    '-blockdev',
    JSON.stringify({
      driver: 'raw',
      'node-name': isThrottled(spec, disk) ? `f${index}` : `d${index}`,
      'read-only': disk.readOnly,
      discard: 'unmap',
      file: {
        driver: 'file',
        filename: `/dev/fdset/${index + 10}`,
        aio: 'threads',
        locking: disk.readOnly ? 'off' : 'auto',
        'read-only': disk.readOnly,
        discard: 'unmap',
      },
    }),
    ...(isThrottled(spec, disk)
      ? [
          '-blockdev',
          JSON.stringify({
            driver: 'throttle',
            'node-name': `d${index}`,
            'throttle-group': THROTTLE,
            file: `f${index}`,
            discard: 'unmap',
          }),
        ]
      : []),
  ]),
  ...spec.nics.flatMap(({ kind }, index) => ['-netdev', `${kind},id=n${index}${sayFds(taps[index])}`]),
  ...hardware(options, spec),
  // QEMU writes states without a word of its machine type where it is asked for the devices alone.
  ...(restored
    ? ['-S', '-incoming', 'defer', '-global', 'migration.send-configuration=off']
    : [
        '-device',
        Object.entries(VSOCK_PLUG)
          .map(([key, value]) => (key === 'driver' ? value : `${key}=${value}`))
          .join(','),
      ]),
  '-sandbox',
  'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny',
]
