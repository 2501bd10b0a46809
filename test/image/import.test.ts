import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'bun:test'
import type { ImageImportQuery } from '../../src/contract/image.ts'
import { packPath } from '../../src/client/tar.ts'
import { TAR_END } from '../../src/client/tar-header.ts'
import type { Fault } from '../../src/lib/fault.ts'
import { testHost } from '../vm/host.ts'
import { file, saved, sparseFile } from './build.ts'

const own = testHost()
afterAll(() => own[Symbol.asyncDispose]())

const LAYER = Buffer.concat([file('hello', 'x'), TAR_END])

const take = (archive: Uint8Array, query: Partial<ImageImportQuery> = {}) =>
  own.host.images.import(
    { name: 'x', ...query },
    new Blob([archive as Uint8Array<ArrayBuffer>]).stream(),
    AbortSignal.timeout(60_000),
  )

const refusal = async (archive: Uint8Array, query: Partial<ImageImportQuery> = {}): Promise<Fault> => {
  try {
    await take(archive, query)
  } catch (error) {
    return error as Fault
  }
  throw new Error('it was taken')
}

describe('an image of another tool', () => {
  test('is one whatever its files are called, with or without an end mark', async () => {
    const archive = saved({ Entrypoint: ['/bin/echo', 'jib'] }, LAYER)

    for (const end of [Buffer.alloc(0), TAR_END])
      expect(await take(Buffer.concat([archive, end]))).toMatchObject({
        format: 'docker',
        config: { entrypoint: ['/bin/echo', 'jib'] },
      })
  })

  test.each(['SIGRTMIN+3', 'RTMAX-2', 'sigterm', '37', 'SIGSTKFLT', ''])('may stop by %s', async (StopSignal) => {
    expect(await take(saved({ StopSignal }, LAYER))).toMatchObject({ config: { stop_signal: StopSignal } })
  })

  test.each(['SIGNONSENSE', '0', '65', 'SIGRTMIN+31', 'TERM;KILL', 'x'.repeat(1000)])(
    'is refused where no signal is called %s',
    async (StopSignal) => {
      const { code, message } = await refusal(saved({ StopSignal }, LAYER))

      expect(code).toBe('archive_invalid')
      expect(message).toStartWith(`Cannot use the image's StopSignal "${StopSignal.slice(0, 100)}"`)
      expect(message.length).toBeLessThan(250)
    },
  )

  test('keeps nothing of an import that was refused', async () => {
    await take(saved({ Cmd: ['kept'] }, LAYER), { name: 'kept' })
    await refusal(saved({ StopSignal: 'NONE', Cmd: ['other'] }, LAYER), { name: 'kept' })

    expect(own.host.images.get('kept').config.cmd).toEqual(['kept'])
  })
})

describe('a limit', () => {
  const big = Buffer.concat([file('small', ''), file('var/lib/big', Buffer.alloc(3 << 20, 1))])

  test('names the file, and the flag that raises it', async () => {
    for (const archive of [big, Bun.gzipSync(big)]) {
      const { code, message, hint } = await refusal(archive, { max_size_mb: 2 })

      expect(code).toBe('archive_too_large')
      expect(message).toBe('Cannot unpack "var/lib/big": the limit is 2 MiB of contents')
      expect(hint).toContain('--max-size')
    }
    const { message, hint } = await refusal(big, { max_entries: 1 })
    expect(message).toBe('Cannot unpack "var/lib/big": the limit is 1 entry')
    expect(hint).toContain('--max-entries')
  })

  test('can be raised', async () => {
    expect(await take(big, { max_size_mb: 20_000, max_entries: 2 })).toMatchObject({ format: 'rootfs' })
  })

  test('does not count the holes of a sparse file', async () => {
    const lastlog = sparseFile('var/log/lastlog', 100 * 2 ** 30, [0, 1], '1')

    const image = await take(lastlog, { max_size_mb: 64 })

    const { erofsDigest } = own.host.images.resolve(image.digest)
    expect(statSync(own.host.images.pathOf({ erofsDigest })).blocks * 512).toBeLessThan(256 * 1024)
  })
})

test('a folder goes in with its holes, and with names that are no UTF-8', async () => {
  const folder = mkdtempSync('/tmp/aerie-u-')
  try {
    const log = openSync(join(folder, 'lastlog'), 'w')
    writeSync(log, 'x', 1_000_000)
    ftruncateSync(log, 100 * 2 ** 30)
    closeSync(log)
    writeFileSync(Buffer.concat([Buffer.from(`${folder}/a`), Buffer.from([0xe4])]), 'odd')

    const image = await own.host.images.import(
      { name: 'folder' },
      packPath(folder, { as: '', owners: 'keep' }),
      AbortSignal.timeout(60_000),
    )

    expect(image.size_bytes).toBeLessThan(32 * 2 ** 20)
    const { erofsDigest } = own.host.images.resolve(image.digest)
    const erofs = readFileSync(own.host.images.pathOf({ erofsDigest }))
    expect(erofs.includes(Buffer.from([0x61, 0xe4]))).toBe(true)
  } finally {
    rmSync(folder, { recursive: true })
  }
})
