import { describe, expect, test } from 'bun:test'
import { closeSync, fstatSync, ftruncateSync, openSync, readFileSync, readSync, writeSync } from 'node:fs'
import { allocatedBytes, copyRange, fsync, nextData, nextHole, punchHole, reflink } from '../../src/linux/file.ts'
import { tryLock } from '../../src/linux/lock.ts'
import { socketPair } from '../../src/linux/socket.ts'
import { closeFd } from '../../src/linux/fd.ts'
import { temporaryFolder } from './support.ts'

const MIB = 2 ** 20

describe('files', () => {
  test('holes are found, counted and punched, also beyond 4 GiB', () => {
    using folder = temporaryFolder()
    const fd = openSync(folder.file('sparse'), 'w+')
    const at = 5 * 2 ** 30
    ftruncateSync(fd, 6 * 2 ** 30)
    writeSync(fd, Buffer.alloc(MIB, 1), 0, MIB, at)

    expect(nextData(fd, 0)).toBe(at)
    expect(nextHole(fd, at)).toBe(at + MIB)
    expect(nextData(fd, at + MIB)).toBeUndefined()
    expect(allocatedBytes(fd)).toBe(MIB)
    punchHole(fd, at, MIB / 2)
    expect(allocatedBytes(fd)).toBe(MIB / 2)
    expect(fstatSync(fd).size).toBe(6 * 2 ** 30)
    const byte = Buffer.alloc(1)
    readSync(fd, byte, 0, 1, at)
    expect(byte[0]).toBe(0)
    closeSync(fd)
  })

  test('a range is copied, at most 4 MiB at once, and ends with the file', () => {
    using folder = temporaryFolder()
    const from = openSync(folder.file('from'), 'w+')
    const to = openSync(folder.file('to'), 'w+')
    writeSync(from, Buffer.alloc(6 * MIB, 'abc'))

    expect(copyRange(from, 3, to, 0, 100 * MIB)).toBe(4 * MIB)
    expect(copyRange(from, 4 * MIB + 3, to, 4 * MIB, 100 * MIB)).toBe(2 * MIB - 3)
    expect(copyRange(from, 6 * MIB, to, 0, 1)).toBe(0)
    expect(readFileSync(folder.file('to')).equals(Buffer.alloc(6 * MIB, 'abc').subarray(3))).toBe(true)
    fsync(to)
    closeSync(from)
    closeSync(to)
  })

  test('numbers that are no offsets are refused before the kernel sees them', () => {
    for (const bad of [-1, 0.5, Number.NaN, 2 ** 60, Number.POSITIVE_INFINITY]) {
      expect(() => {
        punchHole(0, bad, 1)
      }).toThrow(RangeError)
      expect(() => nextData(0, bad)).toThrow(RangeError)
      expect(() => copyRange(0, 0, 1, 0, bad)).toThrow(RangeError)
    }
  })

  test('what is not a file, or not open, is an error with its name', () => {
    const [a, b] = socketPair()

    expect(() => nextData(a, 0)).toThrow('lseek: ESPIPE')
    expect(() => {
      punchHole(a, 0, 1)
    }).toThrow('fallocate: ENODEV')
    expect(() => {
      reflink(a, b)
    }).toThrow('FICLONE')
    for (const attempt of [
      () => {
        fsync(100_000)
      },
      () => allocatedBytes(100_000),
      () => {
        reflink(100_000, 100_000)
      },
      () => copyRange(100_000, 0, 100_000, 0, 1),
    ]) {
      expect(attempt).toThrow('EBADF')
    }
    closeFd(a)
    closeFd(b)
  })

  test('a lock is held by one process at a time and ends with it', async () => {
    using folder = temporaryFolder()
    const path = folder.file('lock')
    const first = tryLock(path)

    expect(first).toBeNumber()
    expect(tryLock(path)).toBeUndefined()
    closeFd(first ?? -1)
    const source = folder.file('holder.ts')
    await Bun.write(
      source,
      `
      import { tryLock } from '${import.meta.dir}/../../src/linux/lock.ts'
      console.log(tryLock(${JSON.stringify(path)}) !== undefined)
      setInterval(() => {}, 1000)`,
    )
    const holder = Bun.spawn([process.execPath, source])
    const { value } = await holder.stdout.getReader().read()
    expect(Buffer.from(value ?? []).toString()).toBe('true\n')
    expect(tryLock(path)).toBeUndefined()
    holder.kill('SIGKILL')
    await holder.exited
    const again = tryLock(path)
    expect(again).toBeNumber()
    closeFd(again ?? -1)
  })
})
