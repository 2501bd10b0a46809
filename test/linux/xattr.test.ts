import { describe, expect, test } from 'bun:test'
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { xattrsOf } from '../../src/linux/xattr.ts'
import { canSet, isRoot, setXattr, temporaryFolder, testWhere } from './support.ts'

const where = canSet ? '' : ' (skipped: the file system of temporary files has no attributes)'
const plain = (path: string) =>
  xattrsOf(path).map(({ name, value }) => [name.toString('latin1'), value.toString('hex')])

describe.skipIf(!canSet)(`extended attributes${where}`, () => {
  test('are read as bytes, sorted by name, with the empty and the binary ones', () => {
    using folder = temporaryFolder()
    writeFileSync(folder.file('f'), '')
    setXattr(folder.file('f'), 'user.z', Buffer.of(0, 10, 0xff, 0x3d))
    setXattr(folder.file('f'), 'user.a', Buffer.alloc(0))

    expect(plain(folder.file('f'))).toEqual([
      ['user.a', ''],
      ['user.z', '000aff3d'],
    ])
  })

  test('of a folder are its own, and a link has not those of what it points to', () => {
    using folder = temporaryFolder()
    mkdirSync(folder.file('d'))
    symlinkSync('d', folder.file('l'))
    setXattr(folder.file('d'), 'user.d', Buffer.from('1'))

    expect([plain(folder.file('d')), plain(folder.file('l'))]).toEqual([[['user.d', '31']], []])
  })

  testWhere(isRoot, "a capability is root's to give", "hold a file's capabilities", () => {
    using folder = temporaryFolder()
    writeFileSync(folder.file('ping'), '')
    const capability = Buffer.from('0100000200200000000000000000000000000000', 'hex') // cap_net_raw=ep, linux/capability.h
    setXattr(folder.file('ping'), 'security.capability', capability)

    expect(plain(folder.file('ping'))).toEqual([['security.capability', capability.toString('hex')]])
  })
})

test('a file system without attributes has none, and a path that is not there is an error', () => {
  expect(xattrsOf('/proc/self/status')).toEqual([])
  expect(() => xattrsOf('/nonexistent/x')).toThrow('llistxattr "/nonexistent/x": ENOENT')
})
