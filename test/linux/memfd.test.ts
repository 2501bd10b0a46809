import { describe, expect, test } from 'bun:test'
import { closeSync, fchmodSync, fstatSync, ftruncateSync, readFileSync, readSync, writeSync } from 'node:fs'
import { closeFd } from '../../src/linux/fd.ts'
import { memfdEmpty, memfdSealed } from '../../src/linux/memfd.ts'
import { kernelAtLeast, openFds, testWhere } from './support.ts'

describe('memfdSealed', () => {
  test('reads from the start, and nobody can change it', () => {
    const fd = memfdSealed('frozen', Buffer.from('content'))
    const bytes = Buffer.alloc(20)

    expect(readSync(fd, bytes)).toBe(7)
    expect(bytes.subarray(0, 7).toString()).toBe('content')
    expect(() => writeSync(fd, 'x', 0)).toThrow('EPERM')
    expect(() => {
      ftruncateSync(fd, 1)
    }).toThrow('EPERM')
    expect(() => {
      ftruncateSync(fd, 100)
    }).toThrow('EPERM')
    expect(openFds().get(fd)).toBe('/memfd:frozen (deleted)')
    closeSync(fd)
  })

  test('an empty one and one of many pages are whole', () => {
    const big = Buffer.alloc(9_000_001, 'abcdefg')
    for (const content of [new Uint8Array(0), big]) {
      const fd = memfdSealed('x', content)
      expect(readFileSync(`/proc/self/fd/${fd}`).equals(content)).toBe(true)
      closeFd(fd)
    }
  })

  test('an executable one runs, also under another user', () => {
    const fd = memfdSealed('true', readFileSync('/bin/true'), { executable: true })
    expect(Bun.spawnSync([`/proc/self/fd/${fd}`]).exitCode).toBe(0)
    if (process.getuid?.() === 0)
      expect(Bun.spawnSync([`/proc/self/fd/${fd}`], { uid: 65534, gid: 65534 }).exitCode).toBe(0)
    closeFd(fd)
  })

  testWhere(kernelAtLeast(6, 3), 'the seal came with Linux 6.3', 'another one cannot be made executable', () => {
    const data = memfdSealed('data', readFileSync('/bin/true'))
    expect(() => {
      fchmodSync(data, 0o755)
    }).toThrow('EPERM')
    expect(() => Bun.spawnSync([`/proc/self/fd/${data}`])).toThrow('EACCES')
    closeFd(data)
  })

  test('a name that cannot be one is refused', () => {
    expect(() => memfdSealed('x'.repeat(250), new Uint8Array(1))).toThrow('EINVAL')
    expect(() => memfdSealed('a\0b', new Uint8Array(1))).toThrow('EINVAL')
    expect(() => memfdSealed('', new Uint8Array(1))).toThrow('ENOENT')
  })

  test('a descriptor that is not open is EBADF', () => {
    expect(() => {
      closeFd(100_000)
    }).toThrow('close: EBADF')
  })
})

describe('memfdEmpty', () => {
  test('is a hole of its size that can be written and takes no room', () => {
    const fd = memfdEmpty('ram', 2 ** 33)
    try {
      expect(fstatSync(fd)).toMatchObject({ size: 2 ** 33, blocks: 0 })
      expect(writeSync(fd, 'x', 2 ** 32)).toBe(1)
      expect(fstatSync(fd).size).toBe(2 ** 33)
      expect(openFds().get(fd)).toBe('/memfd:ram (deleted)')
    } finally {
      closeSync(fd)
    }
  })

  test('a size or name that cannot be is refused', () => {
    expect(() => memfdEmpty('ram', -1)).toThrow('EINVAL')
    expect(() => memfdEmpty('x'.repeat(250), 1)).toThrow('EINVAL')
  })
})
