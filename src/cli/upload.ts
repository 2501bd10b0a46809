import { closeSync, openSync, readSync, statSync } from 'node:fs'
import { Type } from '@sinclair/typebox'
import { packPath, pathUnreadable, realLocal } from '../client/tar.ts'
import { fault } from '../lib/fault.ts'
import type { Context } from './command.ts'
import type { Progress } from './progress.ts'
import { stdin } from './stdin.ts'

export const notAFile = fault(
  'path_unusable',
  'invalid',
  { path: Type.String(), reason: Type.String() },
  (d) => `Cannot use "${d.path}": ${d.reason}`,
)

/** Reads the first bytes of a file. @throws a fault that says why it cannot be read. */
export const headOf = (path: string, bytes: number): Buffer => {
  const buffer = Buffer.alloc(bytes)
  try {
    const fd = openSync(path, 'r')
    try {
      return buffer.subarray(0, readSync(fd, buffer, 0, bytes, 0))
    } finally {
      closeSync(fd)
    }
  } catch (error) {
    const code = (error as { code?: unknown }).code
    throw pathUnreadable(
      {
        path,
        reason:
          code === 'EACCES' || code === 'EPERM'
            ? 'this user may not'
            : error instanceof Error
              ? error.message
              : String(error),
      },
      error,
    )
  }
}

/**
 * Makes the body of an import: a tar as it is (`-` is stdin), or a folder as a tar with its owners, devices,
 * capabilities and ACLs.
 */
export const bodyOf = (
  context: Context,
  path: string,
  progress: Progress,
  failed: (error: unknown) => void,
): ReadableStream<Uint8Array> => {
  if (path === '-') return progress.count(stdin(failed))
  const real = realLocal(path)
  const stat = statSync(real)
  if (stat.isDirectory()) {
    return packPath(real, {
      as: '',
      owners: 'keep',
      devices: true,
      xattrs: true,
      progress: progress.at,
      failed,
      skipped: (skipped, reason) => {
        context.out.warn(`left out "${skipped}": ${reason}`)
      },
    })
  }
  if (!stat.isFile() && !stat.isFIFO()) throw notAFile({ path, reason: 'it is neither a file nor a folder' })
  if (stat.isFile()) {
    headOf(real, 1)
    if (stat.size === 0) throw notAFile({ path, reason: 'it is empty' })
  }
  return progress.count(Bun.file(real).stream())
}
