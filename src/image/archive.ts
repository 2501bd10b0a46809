import { createHash } from 'node:crypto'
import { closeSync, fchmodSync, fsyncSync, openSync, writeSync } from 'node:fs'
import { Type } from '@sinclair/typebox'
import { diskExhausted, unexpected } from '../lib/errors.ts'
import { fault, type Fault } from '../lib/fault.ts'
import { sentenceOf } from '../lib/sentence.ts'
import { WingError } from '../linux/wing.ts'

/** What raises the limits of `wing pack`, by the flag that it names. */
const RAISED_BY = new Map([
  ['max-bytes', 'Raise the limit with `--max-size` (max_size_mb in the API)'],
  ['max-entries', 'Raise the limit with `--max-entries` (max_entries in the API)'],
])

export const archiveInvalid = fault(
  'archive_invalid',
  'invalid',
  { reason: Type.String(), problem: Type.String() },
  (d) => sentenceOf('Cannot read the archive', d.reason),
)
const archiveTooLarge = fault(
  'archive_too_large',
  'exhausted',
  { reason: Type.String(), problem: Type.String(), flag: Type.Optional(Type.String()) },
  (d) => sentenceOf('Cannot unpack the archive', d.reason),
  (d) => RAISED_BY.get(d.flag ?? ''),
)
const packFailed = fault('pack_failed', 'internal', { reason: Type.String(), problem: Type.String() }, (d) =>
  sentenceOf('Cannot convert the archive', d.reason),
)
export const kernelModuleMissing = fault(
  'kernel_module_missing',
  'invalid',
  { reason: Type.String(), problem: Type.String() },
  (d) => sentenceOf('Cannot use this kernel', d.reason),
  'Give the kernel together with its modules folder, or its Debian package',
)
export const kernelMissing = fault(
  'kernel_missing',
  'invalid',
  { reason: Type.String(), problem: Type.String() },
  (d) => sentenceOf('Cannot find a kernel in the archive', d.reason),
)

type Failure = (data: { reason: string; problem: string; flag?: string }, cause?: unknown) => Fault

/** The codes that are not about what the archive holds. */
const BY_CODE = new Map<string, Failure>([
  ['archive_too_large', archiveTooLarge],
  ['disk_full', diskExhausted],
  ['kernel_module_missing', kernelModuleMissing],
  ['kernel_missing', kernelMissing],
  ['usage', packFailed],
  ['confinement_failed', packFailed],
  ['read_failed', packFailed],
  ['write_failed', packFailed],
  ['scratch_required', packFailed],
  ['internal', packFailed],
  ['wing_died', packFailed],
])

/** Writes the limits of a request as flags of `wing pack`, whose defaults stand in native/README.md. */
export const limitsOf = (asked: { readonly max_size_mb?: number; readonly max_entries?: number }): string[] => [
  ...(asked.max_size_mb === undefined ? [] : ['--max-bytes', String(asked.max_size_mb * 2 ** 20)]),
  ...(asked.max_entries === undefined ? [] : ['--max-entries', String(asked.max_entries)]),
]

/** What `wing pack` said as a fault: almost always the archive is to blame, and its own code says how. */
export const archiveFault = (error: unknown): Fault => {
  if (!(error instanceof WingError)) return unexpected(error)
  const reason = [error.message, ...error.chain].join(': ')
  const made = BY_CODE.get(error.code) ?? archiveInvalid
  return made({ reason, problem: error.code, ...(error.flag !== undefined && { flag: error.flag }) }, error)
}

/** Hashes a file with SHA-256, streamed; the hash is hex. */
export const sha256File = async (path: string): Promise<string> => {
  const hash = createHash('sha256')
  for await (const chunk of Bun.file(path).stream()) hash.update(chunk)
  return hash.digest('hex')
}

/**
 * Copies a file, also one inside the executable, a piece at a time, and syncs it: mode 0644, for a VMM of another user.
 */
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
