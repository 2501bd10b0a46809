/**
 * Names of archive entries and of what a link leads to.
 *
 * Linux says that a name is bytes, and they need not be UTF-8. Inside of the tar code a name is therefore a byte
 * string: a string with one character for each byte (latin1). Such strings can be split, compared and kept in maps, and
 * become the same bytes again.
 */
import { Type } from '@sinclair/typebox'
import { fault } from '../lib/fault.ts'

export const archiveInvalid = fault(
  'archive_invalid',
  'invalid',
  { reason: Type.String() },
  (d) => `Cannot unpack the archive: ${d.reason}`,
)
export const entryEscapes = fault(
  'entry_escapes',
  'invalid',
  { entry: Type.String(), reason: Type.String() },
  (d) => `Cannot unpack "${d.entry}": ${d.reason}`,
  'The archive tries to write outside of its folder; what came before it is there',
)

/** PATH_MAX of Linux: no call takes a longer path. */
export const NAME_BYTES_MAX = 4096
export const DEPTH_MAX = 256

/** Gives the bytes of a byte string. */
export const bytesOfName = (name: string): Buffer => Buffer.from(name, 'latin1')

/** Makes a byte string of bytes. */
export const nameOfBytes = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')

/** Makes a byte string of ordinary text, which is UTF-8 on the disk. */
export const nameOfText = (text: string): string => Buffer.from(text).toString('latin1')

/** Writes a byte string for people, cut to a bearable length: bytes that are not UTF-8 show as U+FFFD. */
export const sayName = (name: string): string => bytesOfName(name).toString().slice(0, 200)

/** Splits an entry's name into its parts, checked: relative, downwards, of a bounded length. */
export const entryParts = (name: string): string[] => {
  const escapes = (reason: string) => entryEscapes({ entry: sayName(name), reason })
  if (name.includes('\0')) throw archiveInvalid({ reason: 'a name holds a NUL' })
  if (name.length > NAME_BYTES_MAX) throw archiveInvalid({ reason: `a name is longer than ${NAME_BYTES_MAX} bytes` })
  if (name.startsWith('/')) throw escapes('its name is absolute')
  const parts = name.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw escapes('its name leads upwards')
  if (parts.length > DEPTH_MAX) throw archiveInvalid({ reason: `a name is deeper than ${DEPTH_MAX} folders` })
  return parts
}
