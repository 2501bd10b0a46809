import { afterAll, beforeEach, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  closeSync,
  existsSync,
  ftruncateSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { renameTop } from '../../src/cli/commands/vm/copy-plan.ts'
import { repack } from '../../src/client/repack.ts'
import { encodeHeader, padding, TAR_END, type Header } from '../../src/client/tar-header.ts'
import { packPath } from '../../src/client/tar.ts'
import { unpack } from '../../src/client/untar.ts'
import { Fault } from '../../src/lib/fault.ts'
import { isRoot, testWhere } from '../linux/support.ts'
import { bytesOf, copyFolders, faultOf, streamOf } from './copying.ts'

/** What copies of files do with odd names, odd files and hostile archives, on real folders. */

const folders = copyFolders()
afterAll(folders.remove)
let from = ''
let to = ''
let outside = ''
beforeEach(() => {
  ;({ from, to, outside } = folders.next())
})

const entry = ({ content = '', ...it }: Partial<Header> & { name: string; content?: string }): Buffer => {
  const body = Buffer.from(content)
  const header = encodeHeader({ type: 'file', mode: 0o644, uid: 0, gid: 0, mtime: 1, size: body.length, ...it })
  return Buffer.concat([header, body, Buffer.alloc(padding(body.length))])
}
const archive = (...entries: Parameters<typeof entry>[0][]): ReadableStream<Uint8Array> =>
  streamOf(...entries.map(entry), TAR_END)
const run = async (command: string[], stdin?: Uint8Array) => {
  const child = Bun.spawn(command, { stdin: stdin ?? null, stdout: 'pipe', stderr: 'inherit', env: process.env })
  const out = Buffer.from(await new Response(child.stdout).arrayBuffer())
  return { code: await child.exited, out }
}
const mkfifo = async (path: string) => {
  expect((await run(['mkfifo', path])).code).toBe(0)
}
const at = (folder: string, name: Uint8Array): Buffer => Buffer.concat([Buffer.from(`${folder}/`), name])
const namesOf = (folder: string): string[] =>
  readdirSync(folder, { encoding: 'buffer' })
    .map((name) => name.toString('hex'))
    .sort()

describe('names are bytes', () => {
  const names = [
    Buffer.of(0xe4),
    Buffer.of(0xf6),
    Buffer.of(0x61, 0xff),
    Buffer.from('a\nb "c" %'),
    Buffer.from('smørrebrød ☃'),
    Buffer.alloc(255, 0x80),
    Buffer.alloc(101, 0xfe),
  ]
  const fill = () => {
    for (const name of names) writeFileSync(at(from, name), name)
    mkdirSync(at(from, Buffer.of(0xd0)))
    for (const name of names) writeFileSync(Buffer.concat([at(from, Buffer.of(0xd0, 0x2f)), name]), name)
    symlinkSync(Buffer.of(0xe4), at(from, Buffer.from('link')))
    linkSync(at(from, Buffer.of(0xe4)), at(from, Buffer.of(0xe5)))
  }
  const same = (there: string) => {
    expect(namesOf(there)).toEqual(namesOf(from))
    expect(namesOf(`${there}/`)).toHaveLength(names.length + 3)
    for (const name of names) expect(readFileSync(at(there, name)).equals(name)).toBe(true)
    expect(readlinkSync(join(there, 'link'), { encoding: 'buffer' })).toEqual(Buffer.of(0xe4))
    expect(statSync(at(there, Buffer.of(0xe5))).nlink).toBe(2)
  }

  test('on their way out of this host and into it', async () => {
    fill()

    await unpack(packPath(from, { as: 'd' }), to)

    same(join(to, 'd'))
  })

  test('on their way from one guest to another, under another name', async () => {
    fill()

    await unpack(repack(packPath(from, { as: 'd' }), renameTop('d', 'schön')), to)

    same(join(to, 'schön'))
  })

  test('for GNU tar in both directions', async () => {
    fill()

    const ours = await bytesOf(packPath(from, { as: 'd' }))
    expect((await run(['tar', '-xf', '-', '-C', to], ours)).code).toBe(0)
    same(join(to, 'd'))
    for (const format of ['gnu', 'pax']) {
      const { out } = await run(['tar', `--format=${format}`, '-cf', '-', '-C', from, '.'])
      const there = join(to, format)
      mkdirSync(there)
      await unpack(streamOf(out), there)
      same(there)
    }
  })
})

describe('a hostile archive between two guests', () => {
  const hostile: readonly (readonly [string, () => ReadableStream<Uint8Array>])[] = [
    [
      'a file below a link',
      () => archive({ name: 'x/l', type: 'symlink', linkname: '/etc' }, { name: 'x/l/passwd', content: 'root2' }),
    ],
    [
      'a folder over a link',
      () => archive({ name: 'l', type: 'symlink', linkname: '/' }, { name: 'l', type: 'directory' }),
    ],
    [
      'a file below another name of a link',
      () =>
        archive(
          { name: 'l', type: 'symlink', linkname: '/' },
          { name: 'h', type: 'link', linkname: 'l' },
          { name: 'h/etc/passwd', content: 'x' },
        ),
    ],
    [
      'a hard link through a link',
      () =>
        archive({ name: 'l', type: 'symlink', linkname: '/etc' }, { name: 'h', type: 'link', linkname: 'l/shadow' }),
    ],
    ['an absolute name', () => archive({ name: '/etc/passwd', content: 'x' })],
    ['a name that leads upwards', () => archive({ name: 'x/../../etc/passwd', content: 'x' })],
  ]

  test.each(hostile)('with %s is refused', async (_, make) => {
    const fault = await faultOf(bytesOf(repack(make(), renameTop('x', 'x'))))

    expect(fault.code).toBe('entry_escapes')
  })

  const kinds = ['symlink', 'link', 'directory', 'fifo', 'character-device'] as const
  test.each(kinds)('cannot hide headers in the body of an entry of kind %s', async (type) => {
    const hidden = entry({ name: '/etc/cron.d/evil', content: 'root2' })
    // The size that the entry states makes a body of the next header for whoever believes it.
    const outer = entry({ name: 'x', type, linkname: type === 'link' ? 'y' : 'z', size: hidden.length })

    const fault = await faultOf(bytesOf(repack(streamOf(outer, hidden, TAR_END), renameTop('', ''))))

    expect(fault.code).toBe('entry_escapes')
  })

  test('leaves set-id bits and devices behind, but for an archive', async () => {
    const make = () =>
      archive({ name: 'su', mode: 0o6755, content: 'x' }, { name: 'dev', type: 'block-device', devmajor: 8 })
    const listed = async (keep: boolean, skipped: (entry: string) => void) => {
      const out = await bytesOf(repack(make(), renameTop('', ''), { archive: keep, skipped }))
      return (await run(['tar', '-tvf', '-'], out)).out.toString().trim().split('\n')
    }
    const skipped: string[] = []

    const plain = await listed(false, (one) => skipped.push(one))
    const whole = await listed(true, (one) => skipped.push(one))

    expect(plain.map((line) => line.slice(0, 10))).toEqual(['-rwxr-xr-x'])
    expect(whole.map((line) => line.slice(0, 10))).toEqual(['-rwsr-sr-x', 'brw-r--r--'])
    expect(skipped).toEqual(['dev'])
  })

  test('keeps fractions of seconds, and owners that pax takes back', async () => {
    const pax = Buffer.from('11 uid=777\n')
    const global = entry({ name: 'g', content: pax.toString() })
    global.write('g', 156)
    global.fill(' ', 148, 156)
    const sum = global.subarray(0, 512).reduce((all, byte) => all + byte, 0)
    global.write(`${sum.toString(8).padStart(6, '0')}\0`, 148)
    const local = entry({ name: 'x', content: '7 uid=\n' })
    local.write('x', 156)
    local.fill(' ', 148, 156)
    const other = local.subarray(0, 512).reduce((all, byte) => all + byte, 0)
    local.write(`${other.toString(8).padStart(6, '0')}\0`, 148)
    const stream = streamOf(
      global,
      entry({ name: 'a', mtime: 1_000_000_000.25 }),
      local,
      entry({ name: 'b', uid: 5, mtime: 12.5 }),
      TAR_END,
    )

    const out = await bytesOf(repack(stream, renameTop('', '')))
    const listed = (await run(['tar', '-tvf', '-', '--numeric-owner', '--full-time', '--utc'], out)).out.toString()

    expect(listed).toMatch(/777\/0 .*2001-09-09 01:46:40.25 +a\n/)
    expect(listed).toMatch(/5\/0 .*1970-01-01 00:00:12.5 +b\n/)
  })

  test('says itself why the stream ended', async () => {
    const reasons: unknown[] = []
    const broken = new ReadableStream<Uint8Array>({
      start(controller) {
        controller.error(new Fault('guest_refused', 'conflict', 'The agent refused'))
      },
    })

    const fault = await faultOf(bytesOf(repack(broken, renameTop('', ''), { failed: (one) => reasons.push(one) })))

    expect(fault.code).toBe('guest_refused')
    expect(reasons).toEqual([fault])
  })
})

describe('what stands where a file is to be', () => {
  const put = (name = 'x', more: Partial<Header> = {}) => unpack(archive({ name, content: 'new', ...more }), to)

  test('keeps its mode, its inode and its other names', async () => {
    writeFileSync(join(to, 'x'), 'old, and longer')
    chmodSync(join(to, 'x'), 0o640)
    linkSync(join(to, 'x'), join(to, 'y'))
    const before = statSync(join(to, 'x'))

    await put('x', { mode: 0o777 })

    const after = statSync(join(to, 'x'))
    expect([after.ino, after.mode & 0o7777, after.nlink]).toEqual([before.ino, 0o640, 2])
    expect(readFileSync(join(to, 'y'), 'utf8')).toBe('new')
  })

  test('has no set-id bits any more', async () => {
    writeFileSync(join(to, 'x'), 'old')
    chmodSync(join(to, 'x'), 0o6755)

    await put('x', { mode: 0o4755 })

    expect(statSync(join(to, 'x')).mode & 0o7777).toBe(0o755)
  })

  const links: readonly (readonly [string, string, string])[] = [
    ['a file beside it', 'real', 'real'],
    ['a file in a folder', 'sub/../sub/real', 'sub/real'],
    ['a file that is yet to be', 'sub/new', 'sub/new'],
    ['a link to a file', 'other', 'real'],
  ]
  test.each(links)('is followed where it is a link to %s', async (_, target, real) => {
    mkdirSync(join(to, 'sub'))
    writeFileSync(join(to, 'sub/real'), 'old')
    writeFileSync(join(to, 'real'), 'old')
    symlinkSync(join(to, 'real'), join(to, 'other'))
    symlinkSync(target, join(to, 'x'))

    await put()

    expect(readlinkSync(join(to, 'x'))).toBe(target)
    expect(readFileSync(join(to, real), 'utf8')).toBe('new')
  })

  test.each([['../outside/secret'], ['sub/away/secret'], ['/etc/hostname']])(
    'is never followed out of the folder: a link to %s is replaced',
    async (target) => {
      mkdirSync(join(to, 'sub'))
      symlinkSync(outside, join(to, 'sub/away'))
      symlinkSync(target, join(to, 'x'))

      await put()

      expect(readFileSync(join(outside, 'secret'), 'utf8')).toBe('untouched')
      expect(lstatSync(join(to, 'x')).isFile()).toBe(true)
    },
  )

  test('is refused where it is a FIFO or a socket, and stays what it is', async () => {
    await mkfifo(join(to, 'fifo'))
    symlinkSync('fifo', join(to, 'link'))
    const server = createServer().listen(join(to, 'socket'))
    await new Promise((resolve) => server.once('listening', resolve))

    try {
      for (const [name, reason] of [
        ['fifo', 'a FIFO stands there'],
        ['link', 'a FIFO stands there'],
        ['socket', 'a socket stands there'],
      ] as const)
        expect(await faultOf(put(name))).toMatchObject({ code: 'path_unwritable', data: { reason } })
      expect((await faultOf(put('fifo', { type: 'symlink', linkname: 'y', content: '' } as object))).code).toBe(
        'path_unwritable',
      )

      expect(lstatSync(join(to, 'fifo')).isFIFO()).toBe(true)
      expect(lstatSync(join(to, 'socket')).isSocket()).toBe(true)
      expect(lstatSync(join(to, 'link')).isSymbolicLink()).toBe(true)
    } finally {
      server.close()
    }
  })

  testWhere(isRoot, 'only root makes devices', 'is refused where it is a device', async () => {
    if ((await run(['mknod', join(to, 'null'), 'c', '1', '3'])).code !== 0) return

    expect((await faultOf(put('null'))).data).toMatchObject({ reason: 'a device stands there' })
    expect(lstatSync(join(to, 'null')).isCharacterDevice()).toBe(true)
  })

  test('is a running program, which is replaced by a file of its mode', async () => {
    const program = join(to, 'x')
    writeFileSync(program, readFileSync('/bin/sleep'))
    chmodSync(program, 0o711)
    const child = Bun.spawn([program, '1000'])

    try {
      await put()

      expect(readFileSync(program, 'utf8')).toBe('new')
      expect(statSync(program).mode & 0o7777).toBe(0o711)
    } finally {
      child.kill()
      await child.exited
    }
  })

  test('is a folder, which keeps its mode; new ones have what the umask leaves', async () => {
    mkdirSync(join(to, 'd'), { mode: 0o700 })
    const old = process.umask(0o027)
    try {
      await unpack(
        archive(
          { name: 'd/', type: 'directory', mode: 0o777 },
          { name: 'd/f', mode: 0o666, content: 'x' },
          { name: 'd/e/f', content: 'x' },
          { name: 'd/e', type: 'directory', mode: 0o775 },
          { name: 'new/', type: 'directory', mode: 0o777 },
          { name: 'shut/', type: 'directory', mode: 0o077 },
          { name: 'shut/f', mode: 0o4777, content: 'x' },
        ),
        to,
      )
    } finally {
      process.umask(old)
    }

    const mode = (name: string) => (lstatSync(join(to, name)).mode & 0o7777).toString(8)
    expect(['d', 'd/f', 'd/e', 'new', 'shut', 'shut/f'].map(mode)).toEqual(['700', '640', '750', '750', '50', '750'])
  })

  test('is a name that the archive itself linked, which is replaced', async () => {
    await unpack(
      archive(
        { name: 'a', content: 'first' },
        { name: 'b', type: 'link', linkname: 'a' },
        { name: 'b', content: 'second' },
        { name: 's', type: 'symlink', linkname: 'a' },
        { name: 's', content: 'third' },
      ),
      to,
    )

    expect(['a', 'b', 's'].map((name) => readFileSync(join(to, name), 'utf8'))).toEqual(['first', 'second', 'third'])
  })
})

describe('a folder that somebody bends meanwhile', () => {
  test('is written to where it was, not where a link in its place leads', async () => {
    let step = 0
    const parts = [
      entry({ name: 'd/', type: 'directory', mode: 0o755 }),
      entry({ name: 'd/a', content: 'x' }),
      entry({ name: 'd/b', content: 'x' }),
      TAR_END,
    ]
    const stream = new ReadableStream<Uint8Array>(
      {
        pull(controller) {
          // After the folder and a file of it have been made.
          if (step === 2) {
            rmSync(join(to, 'd'), { recursive: true })
            symlinkSync(outside, join(to, 'd'))
          }
          const part = parts[step++]
          if (part) controller.enqueue(part)
          else controller.close()
        },
      },
      { highWaterMark: 0 },
    )

    await unpack(stream, to).catch(() => undefined)

    expect(readdirSync(outside)).toEqual(['secret'])
  })

  test('is read where it was', async () => {
    mkdirSync(join(from, 'd'))
    // The first piece that the packer gives out stands before the folder is read.
    writeFileSync(join(from, 'a'), Buffer.alloc(600_000))
    writeFileSync(join(from, 'd/own'), 'own')
    const reader = packPath(from, { as: 'x' }).getReader()
    const parts = [(await reader.read()).value ?? new Uint8Array()]

    rmSync(join(from, 'd'), { recursive: true })
    symlinkSync(outside, join(from, 'd'))
    for (let next = await reader.read(); !next.done; next = await reader.read()) parts.push(next.value)

    expect(Buffer.concat(parts).includes('untouched')).toBe(false)
  })
})

describe('holes', () => {
  const PIECES: readonly (readonly [number, string])[] = [
    [0, 'start'],
    [3 << 20, 'middle'],
    [40 << 20, 'end'],
  ]
  const SIZE = 64 << 20
  const sparse = (path: string, pieces = PIECES, size = SIZE) => {
    const file = openSync(path, 'w')
    for (const [offset, text] of pieces) writeSync(file, Buffer.from(text), 0, text.length, offset)
    ftruncateSync(file, size)
    closeSync(file)
  }
  const expectSparse = (path: string, pieces = PIECES, size = SIZE) => {
    const stat = statSync(path)
    expect(stat.size).toBe(size)
    expect(stat.blocks * 512).toBeLessThan(256 * 1024)
    const content = readFileSync(path)
    for (const [offset, text] of pieces) expect(content.toString('latin1', offset, offset + text.length)).toBe(text)
    expect(
      content.every((byte, at) => byte === 0 || pieces.some(([from, text]) => at >= from && at < from + text.length)),
    ).toBe(true)
  }

  test('stay holes out of this host, between guests and into it', async () => {
    sparse(join(from, 'f'))
    sparse(join(from, 'none'), [], 8 << 20)
    const packed = await bytesOf(repack(packPath(from, { as: 'd' }), renameTop('d', 'n')))

    await unpack(streamOf(packed), to)

    expect(packed.length).toBeLessThan(256 * 1024)
    expectSparse(join(to, 'n/f'))
    expectSparse(join(to, 'n/none'), [], 8 << 20)
  })

  test('of ours are read by GNU tar', async () => {
    sparse(join(from, 'f'))
    const packed = await bytesOf(packPath(from, { as: 'd'.repeat(150) }))

    expect((await run(['tar', '-xf', '-', '-C', to], packed)).code).toBe(0)

    expectSparse(join(to, 'd'.repeat(150), 'f'))
  })

  const dialects = [
    ['--format=gnu'],
    ['--format=pax', '--sparse-version=0.0'],
    ['--format=pax', '--sparse-version=0.1'],
    ['--format=pax', '--sparse-version=1.0'],
  ]
  test.each(dialects)('of GNU tar are read: %s %s', async (...flags) => {
    const many = Array.from({ length: 60 }, (_, at) => [at << 17, `piece ${at}`] as const)
    sparse(join(from, 'few'))
    sparse(join(from, 'many'), many, 8 << 20)
    const { out } = await run(['tar', ...flags.filter(Boolean), '-S', '-cf', '-', '-C', from, '.'])

    await unpack(streamOf(out), to)

    expectSparse(join(to, 'few'))
    expect(readFileSync(join(to, 'many')).equals(readFileSync(join(from, 'many')))).toBe(true)
    expect(out.length).toBeLessThan(2 << 20)
  })

  test('whose map lies are refused', async () => {
    const lies = [
      { size: 10, pieces: [[0, 11]] },
      {
        size: 10,
        pieces: [
          [5, 5],
          [0, 5],
        ],
      },
      { size: 100, pieces: [[0, 3]] },
    ] as const
    for (const lie of lies)
      expect((await faultOf(unpack(archive({ name: 'x', content: 'four', sparse: lie }), to))).code).toBe(
        'archive_invalid',
      )
  })
})

describe('a file whose size is not what it states', () => {
  const odd = [
    '/proc/version',
    '/sys/kernel/uevent_seqnum',
    '/proc/self/limits',
    '/sys/kernel/mm/transparent_hugepage/enabled',
  ]
  test.each(odd.filter((path) => existsSync(path)))('%s has what it says', async (path) => {
    await unpack(packPath(path, { as: 'x' }), to)

    expect(readFileSync(join(to, 'x'))).toEqual(readFileSync(path))
  })

  test('is cut where it grows, and a fault where it shrinks', async () => {
    const log = join(from, 'log')
    const pack = async (meanwhile: () => void) => {
      writeFileSync(log, Buffer.alloc(2_000_000, 1))
      const reader = packPath(log, { as: 'x' }).getReader()
      const parts = [(await reader.read()).value ?? new Uint8Array()]
      meanwhile()
      for (let next = await reader.read(); !next.done; next = await reader.read()) parts.push(next.value)
      return Buffer.concat(parts)
    }

    const grown = await pack(() => {
      truncateSync(log, 3_000_000)
    })
    await unpack(streamOf(grown), to)
    const fault = await faultOf(
      pack(() => {
        truncateSync(log, 10)
      }),
    )

    expect(readFileSync(join(to, 'x')).equals(Buffer.alloc(2_000_000, 1))).toBe(true)
    expect(fault.code).toBe('path_changed')
  })

  test('is named where the kernel refuses it, and left out with a word in a tree', async () => {
    const said: string[] = []

    const fault = await faultOf(bytesOf(packPath('/proc/self/mem')))
    await bytesOf(packPath('/proc/self/attr', { skipped: (path, reason) => said.push(`${path}: ${reason}`) })).catch(
      () => undefined,
    )

    expect(fault.code).toBe('path_unreadable')
    expect(said.every((line) => line.includes('/proc/self/attr/'))).toBe(true)
  })
})

describe('another file system in a folder', () => {
  testWhere(isRoot, 'only root mounts', 'is left out with a word, and its mount point stays', async () => {
    mkdirSync(join(from, 'a/proc'), { recursive: true })
    mkdirSync(join(from, 'a/tmp'))
    writeFileSync(join(from, 'a/tmp/below'), 'hidden')
    writeFileSync(join(from, 'a/z'), 'after')
    const mounts = [
      ['-t', 'proc', 'proc', join(from, 'a/proc')],
      ['-t', 'tmpfs', 'none', join(from, 'a/tmp')],
    ]
    const mounted: string[] = []
    try {
      for (const mount of mounts) {
        if ((await run(['mount', ...mount])).code !== 0) return
        mounted.push(mount[3] ?? '')
      }
      writeFileSync(join(from, 'a/tmp/in'), 'in the other one')
      const skipped: string[] = []

      await unpack(packPath(from, { as: '', skipped: (path) => skipped.push(path) }), to)

      expect(skipped.sort()).toEqual([join(from, 'a/proc'), join(from, 'a/tmp')])
      expect(readdirSync(join(to, 'a')).sort()).toEqual(['proc', 'tmp', 'z'])
      expect(readdirSync(join(to, 'a/proc'))).toEqual([])
      expect(readdirSync(join(to, 'a/tmp'))).toEqual([])
      // What was named itself is taken, whatever it is in.
      await unpack(packPath(join(from, 'a/tmp'), { as: 'named' }), to)
      expect(readdirSync(join(to, 'named'))).toEqual(['in'])
    } finally {
      for (const path of mounted) await run(['umount', path])
    }
  })
})

test('a tree that is deep and wide arrives whole', async () => {
  const deep = join(from, ...Array.from({ length: 200 }, () => 'd'.repeat(15)))
  mkdirSync(deep, { recursive: true })
  writeFileSync(join(deep, 'f'), 'deep')
  for (let at = 0; at < 500; at++) writeFileSync(join(from, `f${at}`), String(at))

  const done = await unpack(repack(packPath(from, { as: 'x' }), renameTop('x', 'y')), to)

  expect(done.entries).toBe(500 + 200 + 2)
  expect(readFileSync(join(to, 'y', ...Array.from({ length: 200 }, () => 'd'.repeat(15)), 'f'), 'utf8')).toBe('deep')
  rmSync(join(to, 'y'), { recursive: true })
  rmdirSync(to)
}, 20_000)
