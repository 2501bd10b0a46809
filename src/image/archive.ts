import { createHash } from 'node:crypto'
import { closeSync, fchmodSync, fsyncSync, openSync, writeSync } from 'node:fs'
import { Type } from '@sinclair/typebox'
import { internalError } from '../lib/errors.ts'
import { fault, type Fault } from '../lib/fault.ts'
import { WingError } from '../linux/wing.ts'

const archiveInvalid = fault(
  'archive_invalid',
  'invalid',
  { reason: Type.String(), problem: Type.String() },
  (d) => `Cannot read the archive: ${d.reason}`,
)
const archiveTooLarge = fault(
  'archive_too_large',
  'exhausted',
  { reason: Type.String(), problem: Type.String() },
  (d) => `Cannot unpack the archive: ${d.reason}`,
)
export const diskExhausted = fault(
  'disk_exhausted',
  'exhausted',
  { reason: Type.String(), problem: Type.String() },
  (d) => `Cannot write to the state folder: ${d.reason}`,
  'Free some space in the state folder',
)
const packFailed = fault(
  'pack_failed',
  'internal',
  { reason: Type.String(), problem: Type.String() },
  (d) => `Cannot convert the archive: ${d.reason}`,
)
export const kernelModuleMissing = fault(
  'kernel_module_missing',
  'invalid',
  { reason: Type.String(), problem: Type.String() },
  (d) => `Cannot use this kernel: ${d.reason}`,
  'Give the kernel together with its modules folder, or its Debian package',
)
export const kernelMissing = fault(
  'kernel_missing',
  'invalid',
  { reason: Type.String(), problem: Type.String() },
  (d) => `Cannot find a kernel in the archive: ${d.reason}`,
)

const BY_CODE: Readonly<Record<string, (data: { reason: string; problem: string }, cause?: unknown) => Fault>> = {
  archive_too_large: archiveTooLarge,
  no_space: diskExhausted,
  kernel_module_missing: kernelModuleMissing,
  kernel_missing: kernelMissing,
  internal: packFailed,
  output_failed: packFailed,
}

/** What `wing pack` said as a fault: almost always the archive is to blame, and its own code says how. */
export const archiveFault = (error: unknown): Fault => {
  if (!(error instanceof WingError)) return internalError({}, error)
  const reason = [error.message, ...error.chain].join(': ')
  if (/No space left|os error 28/.test(reason)) return diskExhausted({ reason, problem: error.code }, error)
  return (BY_CODE[error.code] ?? archiveInvalid)({ reason, problem: error.code }, error)
}

/** SHA-256 of a file, hex, streamed. */
export const sha256File = async (path: string): Promise<string> => {
  const hash = createHash('sha256')
  for await (const chunk of Bun.file(path).stream()) hash.update(chunk)
  return hash.digest('hex')
}

/** Copies a file, also one inside the executable, a piece at a time, and syncs it: mode 0644, for a VMM of another user. */
export const copySynced = async (from: string, to: string): Promise<void> => {
  const fd = openSync(to, 'wx', 0o644)
  try {
    for await (const piece of Bun.file(from).stream())
      for (let at = 0; at < piece.byteLength; ) at += writeSync(fd, piece, at)
    fchmodSync(fd, 0o644)
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}
