import { describe, expect, test } from 'bun:test'
import { constants } from 'node:os'
import { checked, errnoName, hasCode, SyscallError } from '../../src/linux/errno.ts'

describe('errno', () => {
  test('every name that node knows has the same number here', () => {
    const SAME: Readonly<Record<string, string>> = {
      EWOULDBLOCK: 'EAGAIN',
      ENOTSUP: 'EOPNOTSUPP',
      EDEADLOCK: 'EDEADLK',
    }
    const names = Object.entries(constants.errno)

    expect(names.length).toBeGreaterThan(70)
    for (const [name, number] of names) expect(errnoName(number)).toBe(SAME[name] ?? name)
  })

  test('the last of the table is in its place', () => {
    expect([errnoName(1), errnoName(41), errnoName(58), errnoName(133), errnoName(134)]).toEqual([
      'EPERM',
      'E41',
      'E58',
      'EHWPOISON',
      'E134',
    ])
  })

  test('a negative result is an error that says what, where and why', () => {
    const attempt = () => checked(-2, 'openat2', '/a')

    expect(attempt).toThrow(SyscallError)
    expect(attempt).toThrow('openat2 "/a": ENOENT')
    try {
      attempt()
    } catch (error) {
      expect(error).toMatchObject({ errno: 2, code: 'ENOENT', syscall: 'openat2', path: '/a' })
      expect(hasCode(error, 'EPERM', 'ENOENT')).toBe(true)
      expect(hasCode(error, 'EPERM')).toBe(false)
    }
  })

  test('a result that a number cannot hold is refused', () => {
    expect(() => checked(2n ** 60n, 'lseek')).toThrow(RangeError)
    expect(() => checked(-5n, 'lseek')).toThrow('lseek: EIO')
  })
})
