import { createHash } from 'node:crypto'
import { fstatSync, statSync } from 'node:fs'
import { Type, type Static } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import type { MachineSpec, Saved } from '../../driver.ts'
import { cpuFlags } from '../../../linux/proc.ts'
import { fsync, readInto, writeWhole } from '../../../linux/positional.ts'
import { layoutOf, type QemuOptions } from './argv.ts'
import { VirtioRegisters } from './vsock-device.ts'

/*
 * A saved machine of QEMU's
 *
 * state:   what QEMU says of processors and devices, from the start of the file (QEMU itself reads it), then a trailer of 16 KiB: a line
 *          of magic, a line with the SHA-256 of the next, a line of JSON, zeros. A file that was cut has no trailer at its end.
 * memory:  the guest's, byte n at n; what is zero is a hole. The trailer holds its checksum.
 */

const MAGIC = 'aerie qemu 1'
const TRAILER_BYTES = 16_384
/** The most bytes of saved devices, the memory left out: 170 KiB are usual. QEMU may have been taken over. */
const STATE_BYTES_MAX = 16 * 2 ** 20

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

const NotNegative = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER })
const closed = { additionalProperties: false }

/** What a machine must have in common with the one that was saved. */
export const Shape = Type.Object(
  {
    accelerator: Type.Union([Type.Literal('kvm'), Type.Literal('tcg')]),
    /** What the host's processor can, where the guest has it as it is; empty under TCG. */
    cpu: Type.String(),
    /** The text that `layoutOf` gave for the machine that was saved. */
    layout: Type.String(),
    vcpus: NotNegative,
    memoryMib: NotNegative,
    nics: Type.Array(Type.String()),
    disks: Type.Array(Type.Object({ serial: Type.String(), readOnly: Type.Boolean(), bytes: NotNegative }, closed)),
  },
  closed,
)
export type Shape = Static<typeof Shape>

/**
 * Turns a shape of an older release, which knew one network card at most, into one of today. What comes in may be
 * anything.
 */
export const shapeOfToday = (shape: unknown): unknown => {
  if (typeof shape !== 'object' || shape === null || !('nic' in shape)) return shape
  const { nic, ...rest } = shape
  return { ...rest, nics: nic === true ? ['user'] : [] }
}

/** Says what a machine must be like to be restored from what this one saves. */
export const shapeOf = (options: QemuOptions, spec: MachineSpec): Shape => ({
  accelerator: options.accelerator,
  layout: layoutOf(options),
  cpu: options.accelerator === 'kvm' ? sha256(Buffer.from([...cpuFlags()].sort().join(' '))).slice(0, 16) : '',
  vcpus: spec.vcpus,
  memoryMib: spec.memoryMib,
  nics: spec.nics.map(({ kind }) => kind),
  disks: spec.disks.map(({ path, serial, readOnly }) => ({ serial, readOnly, bytes: statSync(path).size })),
})

const Trailer = Type.Object(
  {
    /** Version and package: another build may read states differently. */
    qemu: Type.String(),
    shape: Shape,
    stateBytes: NotNegative,
    stateSha256: Type.String(),
    memorySum: Type.String(),
    vsock: VirtioRegisters,
  },
  closed,
)
export type Trailer = Static<typeof Trailer>

/** Compares two shapes. @throws an error that says what differs */
const sameShape = (saved: Shape, asked: Shape): void => {
  for (const key of ['accelerator', 'cpu', 'layout', 'vcpus', 'memoryMib', 'nics', 'disks'] as const) {
    const [was, is] = [JSON.stringify(saved[key]), JSON.stringify(asked[key])]
    if (was !== is) throw new Error(`it was saved with another shape: ${key} ${was}, not ${is}`)
  }
}

const readWhole = async (fd: number, bytes: number, from = 0): Promise<Buffer> => {
  const buffer = Buffer.alloc(bytes)
  await readInto(buffer, fd, from)
  return buffer
}

/** Reads what QEMU has written of its devices, from this position on. */
export const readDevices = async (fd: number, from: number): Promise<Buffer> => {
  const size = fstatSync(fd).size - from
  if (size <= 0 || size > STATE_BYTES_MAX) throw new Error(`QEMU says ${size} bytes of its devices`)
  return await readWhole(fd, size, from)
}

/** Writes the state file whole; it has reached the disk when this resolves. */
export const writeState = async (
  into: number,
  devices: Uint8Array,
  more: Pick<Trailer, 'qemu' | 'shape' | 'memorySum' | 'vsock'>,
): Promise<void> => {
  const json = JSON.stringify({
    ...more,
    stateBytes: devices.byteLength,
    stateSha256: sha256(devices),
  } satisfies Trailer)
  const trailer = Buffer.alloc(TRAILER_BYTES)
  const text = Buffer.from(`${MAGIC}\n${sha256(Buffer.from(json))}\n${json}\n`)
  if (text.byteLength > TRAILER_BYTES) throw new Error('its description is too long to be saved')
  text.copy(trailer)
  await writeWhole(into, devices, 0)
  await writeWhole(into, trailer, devices.byteLength)
  await fsync(into)
}

/** The answer to `query-version` (qapi/control.json). */
export const QemuVersion = Type.Object({
  qemu: Type.Object({ major: NotNegative, minor: NotNegative, micro: NotNegative }),
  package: Type.String({ maxLength: 256 }),
})

/** Writes the answer to `query-version` as one text. */
export const sayVersion = ({ qemu, package: build }: Static<typeof QemuVersion>): string =>
  [qemu.major, qemu.minor, qemu.micro].join('.') + (build === '' ? '' : ` ${build}`)

/** Reads a state file that is to become a machine of this shape. @throws an error that says why it cannot */
export const readState = async ({ state: from }: Saved, shape: Shape): Promise<Trailer> => {
  const { size } = fstatSync(from)
  if (size <= TRAILER_BYTES || size > STATE_BYTES_MAX + TRAILER_BYTES) throw new Error('its saved state is not whole')
  const file = await readWhole(from, size)
  const devices = file.subarray(0, size - TRAILER_BYTES)
  const [magic, sum, json = ''] = file
    .subarray(size - TRAILER_BYTES)
    .toString('utf8')
    .split('\n')
  if (magic !== MAGIC || sum !== sha256(Buffer.from(json)))
    throw new Error('its saved state is not whole, or not of this driver')
  const read: unknown = JSON.parse(json)
  const trailer =
    typeof read === 'object' && read !== null && 'shape' in read ? { ...read, shape: shapeOfToday(read.shape) } : read
  if (!Value.Check(Trailer, trailer)) throw new Error('its saved state is of another version')
  if (trailer.stateBytes !== devices.byteLength || trailer.stateSha256 !== sha256(devices))
    throw new Error('its saved state is damaged')
  sameShape(trailer.shape, shape)
  return trailer
}
