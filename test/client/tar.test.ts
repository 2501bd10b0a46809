import { afterAll, beforeEach, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { packAll, packPath } from '../../src/client/tar.ts'
import { encodeHeader, padding, TAR_END, type Header } from '../../src/client/tar-header.ts'
import { repack } from '../../src/client/repack.ts'
import { unpack } from '../../src/client/untar.ts'
import { renameTop } from '../../src/cli/commands/vm/copy-plan.ts'
import type { Fault } from '../../src/lib/fault.ts'
import { xattrsOf } from '../../src/linux/xattr.ts'
import { canSet, isRoot, setXattr, testWhere } from '../linux/support.ts'
import { bytesOf, copyFolders, faultOf, streamOf } from './copying.ts'

const folders = copyFolders()
afterAll(folders.remove)
let from = ''
let to = ''
let outside = ''
beforeEach(() => {
  ;({ from, to, outside } = folders.next())
})

const header = (it: Partial<Header> & { name: string }): Header => ({
  type: 'file',
  mode: 0o644,
  uid: 0,
  gid: 0,
  size: 0,
  mtime: 1,
  ...it,
})
/** An archive of these entries, a string standing for a file's content. */
const archive = (...entries: (Partial<Header> & { name: string; content?: string })[]): ReadableStream<Uint8Array> =>
  streamOf(
    ...entries.flatMap(({ content = '', ...it }) => {
      const body = Buffer.from(content)
      return [encodeHeader(header({ ...it, size: body.length })), body, Buffer.alloc(padding(body.length))]
    }),
    TAR_END,
  )
const tar = async (args: string[], stdin?: Uint8Array) => {
  const child = Bun.spawn(['tar', ...args], {
    stdin: stdin ?? null,
    stdout: 'pipe',
    stderr: 'pipe',
    env: { ...process.env, TZ: 'UTC', LC_ALL: 'C.UTF-8' },
  })
  const [out, err] = await Promise.all([new Response(child.stdout).arrayBuffer(), new Response(child.stderr).text()])
  return { code: await child.exited, out: Buffer.from(out), err }
}

describe('what we pack', () => {
  test('is read by GNU tar with modes, times, links and root as owner', async () => {
    mkdirSync(join(from, 'sub'))
    writeFileSync(join(from, 'sub/a'), 'hello')
    chmodSync(join(from, 'sub/a'), 0o640)
    linkSync(join(from, 'sub/a'), join(from, 'sub/b'))
    symlinkSync('../nowhere', join(from, 'sub/l'))
    for (const path of ['sub/a', 'sub']) utimesSync(join(from, path), 1_000_000_000, 1_000_000_000)

    const { out, code } = await tar(
      ['-tvf', '-', '--numeric-owner', '--full-time'],
      await bytesOf(packPath(from, { as: 'top' })),
    )

    const lines = out
      .toString()
      .split('\n')
      .map((line) => line.replace(/ +/g, ' '))
    expect(code).toBe(0)
    expect(lines).toContain('-rw-r----- 0/0 5 2001-09-09 01:46:40 top/sub/a')
    expect(lines.some((line) => line.endsWith('top/sub/b link to top/sub/a'))).toBe(true)
    expect(lines.some((line) => line.endsWith('top/sub/l -> ../nowhere'))).toBe(true)
    expect(lines).toContain('drwxr-xr-x 0/0 0 2001-09-09 01:46:40 top/sub/')
  })

  test('holds what ustar has no room for: long and foreign names, mode 0, times after 2242', async () => {
    const long = `${'d'.repeat(200)}/${'f'.repeat(200)}`
    const foreign = 'smørrebrød ☃'
    mkdirSync(join(from, 'd'.repeat(200)))
    writeFileSync(join(from, long), 'x')
    writeFileSync(join(from, foreign), 'y')
    writeFileSync(join(from, 'shut'), 'z')
    chmodSync(join(from, 'shut'), 0)
    utimesSync(join(from, foreign), 10_000_000_000, 10_000_000_000)
    symlinkSync('t'.repeat(150), join(from, 'far'))

    const { code } = await tar(['-xpf', '-', '-C', to], await bytesOf(packPath(from, { as: '' })))

    expect(code).toBe(0)
    expect(readFileSync(join(to, long), 'utf8')).toBe('x')
    expect(statSync(join(to, foreign)).mtimeMs).toBe(10_000_000_000_000)
    expect(lstatSync(join(to, 'shut')).mode & 0o7777).toBe(0)
    expect(readlinkSync(join(to, 'far'))).toBe('t'.repeat(150))
  })

  testWhere(
    canSet && isRoot,
    "attributes of every kind are root's to give, on a file system that has them",
    "keeps capabilities, ACLs and other attributes byte by byte where it is told to, and leaves this host's own out",
    async () => {
      const acl = Buffer.from(
        '0200000001000600ffffffff020004003930000004000400ffffffff10000400ffffffff20000400ffffffff',
        'hex',
      ) // u::rw,u:12345:r,g::r,m::r,o::r
      const capability = Buffer.from('0100000200200000000000000000000000000000', 'hex')
      const odd = Buffer.of(0, 10, 61, 255)
      const given: Record<string, Buffer> = {
        'security.capability': capability,
        'system.posix_acl_access': acl,
        'trusted.mine': odd,
        'user.empty': Buffer.alloc(0),
        'user.large': Buffer.alloc(3000, 10),
      }
      writeFileSync(join(from, 'ping'), 'x')
      for (const [name, value] of Object.entries({
        ...given,
        'trusted.overlay.origin': odd,
        'security.mine': odd,
        'user.a=b': odd,
      }))
        setXattr(join(from, 'ping'), name, value)
      linkSync(join(from, 'ping'), join(from, 'ping6'))
      const skipped: string[] = []

      const bytes = await bytesOf(
        packPath(from, { as: '', xattrs: true, skipped: (path, reason) => skipped.push(`${path}: ${reason}`) }),
      )
      expect((await tar(['--xattrs', '--xattrs-include=*', '-xpf', '-', '-C', to], bytes)).code).toBe(0)

      expect(
        Object.fromEntries(xattrsOf(join(to, 'ping6')).map(({ name, value }) => [name.toString(), value])),
      ).toEqual(given)
      expect(skipped).toEqual([`${join(from, 'ping')}: its attribute "user.a=b" has a name that no tar can say`])
      expect((await bytesOf(packPath(from, { as: '' }))).includes('SCHILY')).toBe(false)
    },
  )

  test('with the top left out begins with what is in it', async () => {
    writeFileSync(join(from, 'a'), '')

    expect((await tar(['-tf', '-'], await bytesOf(packPath(from, { as: '' })))).out.toString()).toBe('a\n')
  })

  test('comes back from our own reader as it was', async () => {
    mkdirSync(join(from, 'ro'))
    writeFileSync(join(from, 'ro/file'), Buffer.alloc(700_000, 7))
    linkSync(join(from, 'ro/file'), join(from, 'same'))
    chmodSync(join(from, 'ro'), 0o555)
    utimesSync(join(from, 'ro'), 5, 5)

    const result = await unpack(packPath(from, { as: '' }), to)

    expect(result).toEqual({ entries: 3, bytes: 700_000 })
    expect(readFileSync(join(to, 'same')).equals(Buffer.alloc(700_000, 7))).toBe(true)
    expect(statSync(join(to, 'same')).ino).toBe(statSync(join(to, 'ro/file')).ino)
    expect([statSync(join(to, 'ro')).mode & 0o777, statSync(join(to, 'ro')).mtimeMs]).toEqual([0o555, 5000])
    chmodSync(join(from, 'ro'), 0o755)
    chmodSync(join(to, 'ro'), 0o755)
  })

  test('leaves out a socket, with a word', async () => {
    using server = Bun.listen({
      unix: join(from, 's'),
      socket: {
        data() {
          /* nothing comes */
        },
      },
    })
    const skipped: string[] = []

    const bytes = await bytesOf(
      packPath(from, { as: 'top', skipped: (path, reason) => skipped.push(`${path}: ${reason}`) }),
    )

    expect(server).toBeDefined()
    expect(skipped).toEqual([`${join(from, 's')}: it is a socket`])
    expect((await tar(['-tf', '-'], bytes)).out.toString()).toBe('top/\n')
  })

  test('of a name that is not UTF-8 keeps its bytes', async () => {
    writeFileSync(Buffer.concat([Buffer.from(`${from}/a`), Buffer.of(0xff)]), '')

    expect((await bytesOf(packPath(from))).includes(Buffer.of(0x2f, 0x61, 0xff))).toBe(true)
  })

  test('says what failed to whoever sends it on', async () => {
    const seen: unknown[] = []

    await faultOf(bytesOf(packPath(join(from, 'gone'), { failed: (error) => seen.push(error) })))

    expect(seen).toHaveLength(1)
    expect((seen[0] as Fault).code).toBe('path_unreadable')
  })

  test('of several paths has each under its name', async () => {
    writeFileSync(join(from, 'k'), '')
    mkdirSync(join(from, 'm'))
    writeFileSync(join(from, 'm/x.ko'), '')

    const bytes = await bytesOf(
      packAll([
        { path: join(from, 'k'), as: 'vmlinuz' },
        { path: join(from, 'm'), as: 'lib/modules/6.1.0' },
      ]),
    )

    expect((await tar(['-tf', '-'], bytes)).out.toString()).toBe(
      'vmlinuz\nlib/modules/6.1.0/\nlib/modules/6.1.0/x.ko\n',
    )
  })

  test('is pulled, not pushed: who does not read costs no memory', async () => {
    let read = 0
    writeFileSync(join(from, 'big'), Buffer.alloc(32 * 2 ** 20))
    const reader = packPath(from, {
      progress: (bytes) => {
        read = bytes
      },
    }).getReader()

    await reader.read()
    const after = read
    await Bun.sleep(20)

    expect(read).toBe(after)
    expect(read).toBeLessThan(2 ** 20)
    await reader.cancel()
  })
})

describe('what we unpack', () => {
  test('of GNU tar arrives with modes, times and links, and without set-id bits', async () => {
    mkdirSync(join(from, 'd'))
    writeFileSync(join(from, 'd/run'), '#!')
    chmodSync(join(from, 'd/run'), 0o4755)
    symlinkSync('run', join(from, 'd/also'))
    utimesSync(join(from, 'd/run'), 7, 7)
    const { out } = await tar(['-cf', '-', '-C', from, 'd'])

    await unpack(streamOf(out), to)

    expect(lstatSync(join(to, 'd/run')).mode & 0o7777).toBe(0o755)
    expect(lstatSync(join(to, 'd/run')).mtimeMs).toBe(7000)
    expect(readlinkSync(join(to, 'd/also'))).toBe('run')
  })

  test('replaces a file and a link, and never writes through a link', async () => {
    symlinkSync(join(outside, 'secret'), join(to, 'a'))

    await unpack(archive({ name: 'a', content: 'new' }), to)

    expect(readFileSync(join(outside, 'secret'), 'utf8')).toBe('untouched')
    expect(lstatSync(join(to, 'a')).isFile()).toBe(true)
    expect(readFileSync(join(to, 'a'), 'utf8')).toBe('new')
  })

  const hostile: readonly (readonly [string, string, () => ReadableStream<Uint8Array>])[] = [
    ['an absolute name', 'entry_escapes', () => archive({ name: `${outside}/x`, content: 'x' })],
    ['a name that leads upwards', 'entry_escapes', () => archive({ name: '../outside/x', content: 'x' })],
    [
      'a name that leads down and then upwards',
      'entry_escapes',
      () => archive({ name: 'a/../../outside/x', content: 'x' }),
    ],
    [
      'a file below a link of the archive',
      'entry_escapes',
      () => archive({ name: 'l', type: 'symlink', linkname: outside }, { name: 'l/x', content: 'x' }),
    ],
    [
      'a folder over a link of the archive',
      'entry_escapes',
      () => archive({ name: 'l', type: 'symlink', linkname: outside }, { name: 'l', type: 'directory', mode: 0o777 }),
    ],
    [
      'a file below two links of the archive',
      'entry_escapes',
      () =>
        archive(
          { name: 'a', type: 'symlink', linkname: '..' },
          { name: 'b', type: 'symlink', linkname: 'a/outside' },
          { name: 'b/x', content: 'x' },
        ),
    ],
    [
      'a hard link to an absolute name',
      'entry_escapes',
      () => archive({ name: 'h', type: 'link', linkname: `${outside}/secret` }),
    ],
    ['a hard link upwards', 'entry_escapes', () => archive({ name: 'h', type: 'link', linkname: '../outside/secret' })],
    [
      'a hard link through a link, then a write',
      'entry_escapes',
      () =>
        archive(
          { name: 'l', type: 'symlink', linkname: outside },
          { name: 'h', type: 'link', linkname: 'l/secret' },
          { name: 'h', content: 'x' },
        ),
    ],
    [
      'a hard link to a link',
      'entry_escapes',
      () =>
        archive(
          { name: 'l', type: 'symlink', linkname: `${outside}/secret` },
          { name: 'h', type: 'link', linkname: 'l' },
        ),
    ],
    ['a hard link to nothing', 'archive_invalid', () => archive({ name: 'h', type: 'link', linkname: 'gone' })],
    ['a hard link below nothing', 'archive_invalid', () => archive({ name: 'h', type: 'link', linkname: 'gone/deep' })],
    ['a link to nowhere', 'archive_invalid', () => archive({ name: 'l', type: 'symlink', linkname: '' })],
    ['a file below a file', 'entry_escapes', () => archive({ name: 'f', content: 'x' }, { name: 'f/x', content: 'x' })],
    [
      'a file over a folder',
      'path_unwritable',
      () => archive({ name: 'f', type: 'directory', mode: 0o755 }, { name: 'f', content: 'x' }),
    ],
    ['a name of 300 folders', 'archive_invalid', () => archive({ name: `${'a/'.repeat(300)}x`, content: 'x' })],
    ['a name of 5000 bytes', 'archive_invalid', () => archive({ name: 'a'.repeat(5000), content: 'x' })],
    ['no tar at all', 'archive_invalid', () => streamOf(Buffer.alloc(4096, 'x'))],
    [
      'a tar that is cut in a file',
      'archive_invalid',
      () => streamOf(encodeHeader(header({ name: 'a', size: 5000 })), Buffer.alloc(100)),
    ],
    [
      'a tar that is cut in a header',
      'archive_invalid',
      () => streamOf(encodeHeader(header({ name: 'a' })).subarray(0, 300)),
    ],
    ['a pax record of a gigabyte', 'archive_invalid', () => streamOf(hugePax())],
  ]
  /** A pax header that claims 1 GiB for its record. */
  const hugePax = (): Buffer => {
    const block = encodeHeader(header({ name: 'PaxHeader', size: 2 ** 30 }))
    block.write('x', 156)
    block.fill(' ', 148, 156)
    block.write(
      `${block
        .reduce((sum, byte) => sum + byte, 0)
        .toString(8)
        .padStart(6, '0')}\0`,
      148,
    )
    return block
  }

  test.each(hostile)('with %s is refused as %s, and nothing outside is touched', async (_, code, make) => {
    const fault = await faultOf(unpack(make(), to))

    expect(fault.code).toBe(code)
    expect(readdirSync(outside)).toEqual(['secret'])
    expect(readFileSync(join(outside, 'secret'), 'utf8')).toBe('untouched')
    expect(statSync(outside).mode & 0o777).toBe(0o755)
  })

  test('over a link that stood here before is refused', async () => {
    symlinkSync(outside, join(to, 'l'))

    expect((await faultOf(unpack(archive({ name: 'l/x', content: 'x' }), to))).code).toBe('entry_escapes')
    expect(existsSync(join(outside, 'x'))).toBe(false)
  })

  test('leaves out devices and fifos, with a word', async () => {
    const skipped: string[] = []

    await unpack(
      archive(
        { name: 'dev', type: 'character-device', devmajor: 1, devminor: 3 },
        { name: 'pipe', type: 'fifo' },
        { name: 'file', content: 'x' },
      ),
      to,
      { skipped: (entry, reason) => skipped.push(`${entry}: ${reason}`) },
    )

    expect(skipped).toEqual(['dev: it is a device', 'pipe: it is a fifo'])
    expect(readdirSync(to)).toEqual(['file'])
  })

  test('a stream that breaks off is a fault, and the stream is let go', async () => {
    let cancelled = false
    const endless = new ReadableStream<Uint8Array>({
      pull(controller) {
        controller.enqueue(Buffer.alloc(65_536, 'x'))
      },
      cancel() {
        cancelled = true
      },
    })
    const broken = new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(encodeHeader(header({ name: 'a', size: 5000 })))
      },
      pull(controller) {
        controller.error(new Error('the line went dead'))
      },
    })

    expect((await faultOf(unpack(endless, to))).code).toBe('archive_invalid')
    expect(cancelled).toBe(true)
    expect((await faultOf(unpack(broken, to))).message).toContain('the line went dead')
  })

  test('under another name, top and hard links alike', async () => {
    await unpack(
      archive(
        { name: 'old/', type: 'directory', mode: 0o755 },
        { name: 'old/a', content: 'x' },
        { name: 'old/b', type: 'link', linkname: 'old/a' },
      ),
      to,
      { rename: renameTop('old', 'new') },
    )

    expect(readdirSync(join(to, 'new')).sort()).toEqual(['a', 'b'])
  })
})

test('a repacked archive has other names and all else as it was', async () => {
  mkdirSync(join(from, 'd'))
  writeFileSync(join(from, 'd/a'), 'x'.repeat(1000))
  linkSync(join(from, 'd/a'), join(from, 'd/b'))
  symlinkSync('a', join(from, 'd/c'))
  const { out } = await tar(['-cf', '-', '--sort=name', '--owner=12', '--group=34', '-C', from, 'd'])

  const { out: listed, code } = await tar(
    ['-tvf', '-', '--numeric-owner'],
    await bytesOf(repack(streamOf(out), renameTop('d', 'new'))),
  )

  const names = listed
    .toString()
    .trim()
    .split('\n')
    .map((line) => line.replace(/^(\S+) (\S+) .*:\d\d /, '$1 $2 ').trim())
  expect(code).toBe(0)
  expect(names).toEqual([
    'drwxr-xr-x 12/34 new/',
    '-rw-r--r-- 12/34 new/a',
    'hrw-r--r-- 12/34 new/b link to new/a',
    'lrwxrwxrwx 12/34 new/c -> a',
  ])
})
