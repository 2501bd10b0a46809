import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'bun:test'
import { archiveFault, limitsOf } from '../../src/image/archive.ts'
import { Fault } from '../../src/lib/fault.ts'
import { WingError } from '../../src/linux/wing.ts'

/** The codes of `wing pack`, by the table that its own test keeps whole. */
const CODES = [...readFileSync(join(import.meta.dir, '../../native/README.md'), 'utf8').matchAll(/^\| (`.*?) \|/gm)]
  .flatMap(([, cell = '']) => [...cell.matchAll(/`([a-z_]+)`/g)].map(([, code = '']) => code))
  .filter((code) => !['protocol', 'kestrel', 'vsock', 'wing', 'host', 'talon', 'fuzz'].includes(code))

describe('what wing says', () => {
  test('has a code for each failure', () => {
    expect(CODES.length).toBeGreaterThan(25)
  })

  test.each(CODES)('is told once and as it is: %s', (code) => {
    const message = 'Cannot unpack "var/x": it is not liked'

    const plain = archiveFault(new WingError(code, message))
    const caused = archiveFault(new WingError(code, message, ['No space left on device (os error 28)']))

    expect(plain.message).toBe(message)
    expect(caused.message).toBe(`${message}: No space left on device (os error 28)`)
    expect(plain).toMatchObject({ data: { problem: code } })
  })

  test('blames the archive, the disk or aerie', () => {
    const kinds = (codes: readonly string[]) =>
      codes.map((code) => {
        const made = archiveFault(new WingError(code, 'Cannot do it'))
        return [made.code, made.kind]
      })

    expect(kinds(['disk_full'])).toEqual([['disk_exhausted', 'exhausted']])
    expect(kinds(['archive_too_large'])).toEqual([['archive_too_large', 'exhausted']])
    expect(
      new Set(kinds(['archive_truncated', 'entry_escapes', 'image_layer_missing', 'digest_mismatch']).flat()),
    ).toEqual(new Set(['archive_invalid', 'invalid']))
    expect(
      new Set(
        kinds(['internal', 'usage', 'wing_died', 'write_failed', 'scratch_required', 'confinement_failed']).flat(),
      ),
    ).toEqual(new Set(['pack_failed', 'internal']))
  })

  test('gets words before it where it is no sentence', () => {
    expect(archiveFault(new WingError('wing_died', 'wing pack image ended with SIGKILL')).message).toBe(
      'Cannot convert the archive: wing pack image ended with SIGKILL',
    )
  })

  test('names the flag that raises a limit', () => {
    const hint = (flag?: string) => archiveFault(new WingError('archive_too_large', 'Cannot', [], flag)).hint

    expect(hint('max-bytes')).toContain('--max-size')
    expect(hint('max-bytes')).toContain('max_size_mb')
    expect(hint('max-entries')).toContain('--max-entries')
    expect(hint()).toBeUndefined()
    expect(hint('constructor')).toBeUndefined()
  })

  test('is no fault of the archive where it is no word of wing', () => {
    expect(archiveFault(new Error('x'))).toBeInstanceOf(Fault)
    expect(archiveFault(new Error('x')).code).toBe('internal')
  })
})

test('limits become flags of wing', () => {
  expect(limitsOf({})).toEqual([])
  expect(limitsOf({ max_size_mb: 16_777_216, max_entries: 5 })).toEqual([
    '--max-bytes',
    '17592186044416',
    '--max-entries',
    '5',
  ])
})
