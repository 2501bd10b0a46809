import { describe, expect, test } from 'bun:test'
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { cloneFile, reflinkSupport } from '../../src/linux/clone-file.ts'
import { allocatedBytes } from '../../src/linux/file.ts'
import { isRoot, openFds, temporaryFolder, testWhere } from './support.ts'

const MIB = 2 ** 20
const onDisk = (path: string): number => {
  const fd = openSync(path, 'r')
  try {
    return allocatedBytes(fd)
  } finally {
    closeSync(fd)
  }
}
const digest = (path: string) => new Bun.CryptoHasher('sha256').update(readFileSync(path)).digest('hex')

/** Data at the start, in the middle (longer than a chunk) and at the end, holes between. */
const sparse = (path: string): void => {
  const fd = openSync(path, 'w')
  ftruncateSync(fd, 40 * MIB)
  for (const [at, mib] of [
    [0, 1],
    [10 * MIB, 9],
    [39 * MIB, 1],
  ] as const)
    writeSync(fd, Buffer.alloc(mib * MIB, `${at}`), 0, mib * MIB, at)
  closeSync(fd)
}

describe('cloneFile', () => {
  test('the clone has the content, the holes and the mode', async () => {
    using folder = temporaryFolder()
    const from = folder.file('from')
    const to = folder.file('to')
    sparse(from)
    const clone = await cloneFile(from, to, { mode: 0o640, durable: true })

    expect(clone.bytes).toBe(40 * MIB)
    expect(clone.copiedBytes).toBe(clone.how === 'reflink' ? 0 : 11 * MIB)
    expect(statSync(to)).toMatchObject({ size: 40 * MIB })
    expect(statSync(to).mode & 0o777).toBe(0o640)
    expect(digest(to)).toBe(digest(from))
    expect(onDisk(to)).toBeLessThan(12 * MIB)
  })

  test('empty files, files of holes and files without any are clones too', async () => {
    using folder = temporaryFolder()
    for (const [name, make] of [
      [
        'empty',
        () => {
          writeFileSync(folder.file('empty'), '')
        },
      ],
      [
        'dense',
        () => {
          writeFileSync(folder.file('dense'), Buffer.alloc(5 * MIB + 13, 'x'))
        },
      ],
      [
        'holes',
        () => {
          const fd = openSync(folder.file('holes'), 'w')
          ftruncateSync(fd, 3 * MIB)
          closeSync(fd)
        },
      ],
    ] as const) {
      make()
      await cloneFile(folder.file(name), folder.file(`${name}-2`))
      expect(digest(folder.file(`${name}-2`))).toBe(digest(folder.file(name)))
    }
    expect(onDisk(folder.file('holes-2'))).toBe(0)
  })

  test('nothing is replaced, and what fails leaves no file and no descriptor', async () => {
    using folder = temporaryFolder()
    const from = folder.file('from')
    const to = folder.file('to')
    const fds = openFds().size
    const reason = new Error('enough')
    sparse(from)
    writeFileSync(folder.file('there'), 'mine')

    await expect(cloneFile(from, folder.file('there'))).rejects.toThrow('EEXIST')
    expect(readFileSync(folder.file('there'), 'utf8')).toBe('mine')
    await expect(cloneFile(folder.file('absent'), to)).rejects.toThrow('ENOENT')
    await expect(cloneFile(folder.path, to)).rejects.toThrow()
    await expect(cloneFile(from, to, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    expect(existsSync(to)).toBe(false)
    expect(openFds().size).toBeLessThanOrEqual(fds + 1)
  })

  test('support is asked for without leaving a trace', () => {
    using folder = temporaryFolder()
    writeFileSync(folder.file('a'), Buffer.alloc(65_536, 1))

    expect(reflinkSupport(folder.file('a'), folder.file('b'))).toBeBoolean()
    expect(existsSync(folder.file('b'))).toBe(false)
  })

  const mkfs = Bun.which('mkfs.btrfs') ?? Bun.which('mkfs.xfs')
  testWhere(
    isRoot && mkfs !== null,
    'needs root and mkfs.btrfs or mkfs.xfs',
    'a file system that shares blocks shares them',
    async () => {
      using folder = temporaryFolder()
      const image = folder.file('image')
      const at = folder.file('mounted')
      mkdirSync(at)
      const fd = openSync(image, 'w')
      ftruncateSync(fd, 400 * MIB)
      closeSync(fd)
      expect(Bun.spawnSync([mkfs ?? '', '-q', image]).exitCode).toBe(0)
      const mount = Bun.spawnSync(['mount', '-o', 'loop', image, at])
      expect(mount.stderr.toString()).toBe('')
      try {
        sparse(`${at}/from`)
        expect(await cloneFile(`${at}/from`, `${at}/to`)).toEqual({ how: 'reflink', bytes: 40 * MIB, copiedBytes: 0 })
        expect(digest(`${at}/to`)).toBe(digest(`${at}/from`))
        expect(reflinkSupport(`${at}/from`, `${at}/trial`)).toBe(true)
        writeFileSync(`${at}/to`, 'changed')
        expect(statSync(`${at}/from`).size).toBe(40 * MIB)
        expect((await cloneFile(`${at}/from`, folder.file('elsewhere'))).how).toBe('copy')
      } finally {
        Bun.spawnSync(['umount', at])
      }
    },
  )
})
