import { describe, expect, test } from 'bun:test'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { closeFd, dupCloexec, setCloexec, setNonblock } from '../../src/linux/fd.ts'
import { peerOf, receiveFds, sendFds, socketPair, unixListen } from '../../src/linux/socket.ts'
import { filled, isRoot, listenFd, openFds, temporaryFolder, testWhere } from './support.ts'

const flags = (fd: number): number =>
  Number.parseInt(/^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '', 8)
const O_NONBLOCK = 0o4000
const O_CLOEXEC = 0o2000000

describe('sockets', () => {
  test('a pair is connected and close-on-exec', () => {
    const [a, b] = socketPair()
    const bytes = Buffer.alloc(8)
    writeSync(a, 'hello')

    expect(bytes.subarray(0, readSync(b, bytes)).toString()).toBe('hello')
    expect(flags(a) & O_CLOEXEC).not.toBe(0)
    expect(flags(a) & O_NONBLOCK).toBe(0)
    closeFd(a)
    closeFd(b)
  })

  test('a pair of packets keeps their borders', () => {
    const [a, b] = socketPair('packets')
    const bytes = Buffer.alloc(8)
    writeSync(a, 'one')
    writeSync(a, 'two')

    expect(bytes.subarray(0, readSync(b, bytes)).toString()).toBe('one')
    closeFd(a)
    closeFd(b)
  })

  test('descriptor flags are set and cleared', () => {
    const [a, b] = socketPair()
    const copy = dupCloexec(a)

    expect(flags(copy) & O_CLOEXEC).not.toBe(0)
    setCloexec(copy, false)
    expect(flags(copy) & O_CLOEXEC).toBe(0)
    setNonblock(a, true)
    expect(flags(copy) & O_NONBLOCK).not.toBe(0)
    setNonblock(copy, false)
    expect(flags(a) & O_NONBLOCK).toBe(0)
    for (const fd of [a, b, copy]) closeFd(fd)
  })

  test('descriptors arrive with their bytes, close-on-exec, sixteen of them', () => {
    const [a, b] = socketPair()
    const sent = Array.from({ length: 16 }, (_, n) => filled(`file ${n}`))
    const bytes = Buffer.alloc(100)

    expect(sendFds(a, Buffer.from('x'.repeat(40)), sent)).toBe(40)
    const got = receiveFds(b, bytes)
    expect([got.bytes, got.fds.length]).toEqual([40, 16])
    got.fds.forEach((fd, n) => {
      expect(readFileSync(`/proc/self/fd/${fd}`, 'utf8')).toBe(`file ${n}`)
      expect(flags(fd) & O_CLOEXEC).not.toBe(0)
    })
    for (const fd of [a, b, ...sent, ...got.fds]) closeFd(fd)
  })

  test('bytes without descriptors arrive too, and then the end', () => {
    const [a, b] = socketPair()
    const bytes = Buffer.alloc(100)
    sendFds(a, Buffer.from('plain'), [])

    expect(receiveFds(b, bytes)).toEqual({ bytes: 5, fds: [] })
    expect(() => receiveFds(b, bytes)).toThrow('EAGAIN')
    closeFd(a)
    expect(receiveFds(b, bytes)).toEqual({ bytes: 0, fds: [] })
    closeFd(b)
  })

  test('more descriptors than fit, none to send them with, and a dead peer are refused', () => {
    const [a, b] = socketPair()

    expect(() =>
      sendFds(
        a,
        Buffer.from('x'),
        Array.from({ length: 17 }, () => a),
      ),
    ).toThrow('EINVAL')
    expect(() => sendFds(a, new Uint8Array(0), [a])).toThrow('EINVAL')
    expect(() => sendFds(a, Buffer.from('x'), [100_000])).toThrow('EBADF')
    closeFd(b)
    expect(() => sendFds(a, Buffer.from('x'), [])).toThrow('EPIPE')
    closeFd(a)
  })

  test('a full socket takes nothing more and says so', () => {
    const [a, b] = socketPair()
    const flood = () => {
      for (;;) sendFds(a, Buffer.alloc(65536), [])
    }

    expect(flood).toThrow('EAGAIN')
    closeFd(a)
    closeFd(b)
  })

  test('the peer of a pair is ourselves', () => {
    const [a, b] = socketPair()

    expect(peerOf(a)).toEqual({ pid: process.pid, uid: process.getuid?.() ?? -1, gid: process.getgid?.() ?? -1 })
    expect(() => peerOf(100_000)).toThrow('EBADF')
    closeFd(a)
    closeFd(b)
  })
})

describe('unixListen', () => {
  test('serves, with exactly the mode, whatever the umask', async () => {
    using folder = temporaryFolder()
    for (const mask of [0o000, 0o077, 0o777]) {
      const path = folder.file(`s${mask}`)
      const old = process.umask(mask)
      let fd: number
      try {
        fd = unixListen(path, { mode: 0o660 })
      } finally {
        process.umask(old)
      }
      expect(statSync(path).mode & 0o7777).toBe(0o660)
      using server = listenFd(fd, {
        open: (socket) => {
          socket.end('hello')
        },
        data: () => undefined,
      })
      const answer = Promise.withResolvers<string>()
      await Bun.connect({
        unix: path,
        socket: {
          data: (_, bytes) => {
            answer.resolve(bytes.toString())
          },
        },
      })
      expect(await answer.promise).toBe('hello')
      server.stop(true)
    }
  })

  test('replaces the socket of a dead process, and no live one', () => {
    using folder = temporaryFolder()
    const path = folder.file('s')
    const first = unixListen(path, { mode: 0o600 })

    expect(() => unixListen(path, { mode: 0o600 })).toThrow(`unix_listen "${path}": EADDRINUSE`)
    const inode = lstatSync(path).ino
    closeFd(first)
    expect(existsSync(path)).toBe(true)
    closeFd(unixListen(path, { mode: 0o600 }))
    expect(lstatSync(path).isSocket()).toBe(true)
    expect(inode).toBeGreaterThan(0)
  })

  test('a live socket whose backlog is full is not taken for a dead one', async () => {
    using folder = temporaryFolder()
    const path = folder.file('s')
    const fd = unixListen(path, { mode: 0o600, backlog: 0 })
    const connect = () => Bun.connect({ unix: path, socket: { data: () => undefined } })
    const waiting = await connect() // nobody accepts: this one fills the backlog
    await expect(connect()).rejects.toThrow()

    expect(() => unixListen(path, { mode: 0o600 })).toThrow('EADDRINUSE')
    expect(lstatSync(path).isSocket()).toBe(true)
    waiting.terminate()
    closeFd(fd)
  })

  test('leaves alone what is not a socket', () => {
    using folder = temporaryFolder()
    const file = folder.file('file')
    const link = folder.file('link')
    const nested = folder.file('folder')
    const dangling = folder.file('dangling')
    writeFileSync(file, 'mine')
    symlinkSync(file, link)
    mkdirSync(nested)
    symlinkSync('/proc/absent', dangling)

    for (const path of [file, link, nested, dangling]) expect(() => unixListen(path, { mode: 0o600 })).toThrow('EEXIST')
    expect(readFileSync(link, 'utf8')).toBe('mine')
    expect(lstatSync(dangling).isSymbolicLink()).toBe(true)
  })

  test('107 bytes of path are taken, 108 are not, and no descriptor is lost', () => {
    using folder = temporaryFolder()
    const before = openFds().size
    const long = folder.file('x'.repeat(107 - folder.path.length - 1))

    closeFd(unixListen(long, { mode: 0o600 }))
    expect(() => unixListen(`${long}x`, { mode: 0o600 })).toThrow('ENAMETOOLONG')
    expect(() => unixListen(folder.file('no/such/folder'), { mode: 0o600 })).toThrow('ENOENT')
    expect(() => unixListen('', { mode: 0o600 })).toThrow('ENOENT')
    expect(() => unixListen('/tmp/a\0b', { mode: 0o600 })).toThrow('EINVAL')
    expect(openFds().size).toBe(before)
  })

  testWhere(isRoot, 'needs root', 'belongs to the owner that was named', () => {
    using folder = temporaryFolder()
    const path = folder.file('s')
    closeFd(unixListen(path, { mode: 0o640, uid: 4711, gid: 4712 }))

    expect(statSync(path)).toMatchObject({ uid: 4711, gid: 4712 })
    expect(statSync(path).mode & 0o7777).toBe(0o640)
  })
})
