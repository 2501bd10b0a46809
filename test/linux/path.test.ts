import { describe, expect, test } from 'bun:test'
import {
  closeSync,
  constants,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  statfsSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { lchown, openBeneath, renameNoReplace, spaceOf } from '../../src/linux/path.ts'
import { isRoot, temporaryFolder, testWhere } from './support.ts'

const { O_CREAT, O_DIRECTORY, O_EXCL, O_RDONLY, O_WRONLY } = constants

describe('paths', () => {
  test('a rename replaces nothing', () => {
    using folder = temporaryFolder()
    const [a, b, c] = ['a', 'b', 'c'].map((name) => folder.file(name)) as [string, string, string]
    writeFileSync(a, 'a')
    writeFileSync(b, 'b')

    expect(() => {
      renameNoReplace(a, b)
    }).toThrow(`renameat2 "${b}": EEXIST`)
    expect([readFileSync(a, 'utf8'), readFileSync(b, 'utf8')]).toEqual(['a', 'b'])
    renameNoReplace(a, c)
    expect([existsSync(a), readFileSync(c, 'utf8')]).toEqual([false, 'a'])
    expect(() => {
      renameNoReplace(a, folder.file('d'))
    }).toThrow('ENOENT')
  })

  test('free space is what node says it is', () => {
    const ours = spaceOf('/tmp')
    const node = statfsSync('/tmp')

    expect(ours.totalBytes).toBe(node.blocks * node.bsize)
    expect(ours.magic).toBe(node.type)
    expect(ours.availableBytes).toBeLessThanOrEqual(ours.freeBytes)
    expect(ours.freeBytes).toBeLessThanOrEqual(ours.totalBytes)
    expect(spaceOf('/proc').magic).toBe(0x9fa0) // PROC_SUPER_MAGIC
    expect(() => spaceOf('/proc/absent')).toThrow('statfs "/proc/absent": ENOENT')
  })

  test('what lies below a folder opens, and nothing else, whatever the path', () => {
    using folder = temporaryFolder()
    mkdirSync(folder.file('box/inner'), { recursive: true })
    writeFileSync(folder.file('box/inner/file'), 'content')
    writeFileSync(folder.file('secret'), 'secret')
    symlinkSync('/etc/passwd', folder.file('box/absolute'))
    symlinkSync('../secret', folder.file('box/up'))
    symlinkSync('inner', folder.file('box/inward'))
    symlinkSync('/proc/self/root', folder.file('box/magic'))
    const box = openSync(folder.file('box'), O_RDONLY | O_DIRECTORY)

    const fd = openBeneath(box, 'inner/../inner/file', O_RDONLY)
    expect(readFileSync(fd, 'utf8')).toBe('content')
    closeSync(fd)
    for (const [path, code] of [
      ['../secret', 'EXDEV'],
      ['/etc/passwd', 'EXDEV'],
      ['inner/../../secret', 'EXDEV'],
      ['absolute', 'ELOOP'],
      ['up', 'ELOOP'],
      ['inward/file', 'ELOOP'],
      ['magic/etc/passwd', 'ELOOP'],
      ['absent', 'ENOENT'],
      ['', 'ENOENT'],
      ['a\0b', 'EINVAL'],
      ['x'.repeat(5000), 'ENAMETOOLONG'],
    ] as const) {
      expect(() => openBeneath(box, path, O_RDONLY), path).toThrow(code)
    }
    closeSync(box)
  })

  test('a file is made below a folder with its mode, once', () => {
    using folder = temporaryFolder()
    const box = openSync(folder.path, O_RDONLY | O_DIRECTORY)

    closeSync(openBeneath(box, 'new', O_WRONLY | O_CREAT | O_EXCL, 0o600))
    expect(lstatSync(folder.file('new')).mode & 0o777).toBe(0o600)
    expect(() => openBeneath(box, 'new', O_WRONLY | O_CREAT | O_EXCL, 0o600)).toThrow('EEXIST')
    closeSync(box)
  })

  test('a FIFO that somebody left there stops nothing', () => {
    using folder = temporaryFolder()
    Bun.spawnSync(['mkfifo', folder.file('fifo')])
    const box = openSync(folder.path, O_RDONLY | O_DIRECTORY)

    closeSync(openBeneath(box, 'fifo', O_RDONLY))
    expect(() => openBeneath(box, 'fifo', O_WRONLY)).toThrow('ENXIO')
    closeSync(box)
  })

  testWhere(isRoot, 'needs root', 'a link is given away, not what it points to', () => {
    using folder = temporaryFolder()
    const file = folder.file('file')
    const link = folder.file('link')
    writeFileSync(file, '')
    symlinkSync(file, link)
    lchown(link, 4711, 4712)

    expect(lstatSync(link)).toMatchObject({ uid: 4711, gid: 4712 })
    expect(lstatSync(file).uid).toBe(0)
    expect(() => {
      lchown(folder.file('absent'), 1, 1)
    }).toThrow('ENOENT')
  })
})
