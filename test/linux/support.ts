import { test } from 'bun:test'
import { mkdtempSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { release, tmpdir } from 'node:os'
import { join } from 'node:path'
import { memfdSealed } from '../../src/linux/memfd.ts'

export const isRoot = process.getuid?.() === 0

export const kernelAtLeast = (major: number, minor: number): boolean => {
  const [ours = 0, oursMinor = 0] = release().split('.').map(Number)
  return ours > major || (ours === major && oursMinor >= minor)
}

/** A test with a condition; where it does not hold, the test is skipped and its name says why. */
export const testWhere = (
  holds: boolean,
  reason: string,
  name: string,
  body: () => void | Promise<void>,
  timeoutMs?: number,
): void => {
  test.skipIf(!holds)(holds ? name : `${name} (skipped: ${reason})`, body, timeoutMs)
}

/** A temporary folder that is removed when the block ends. */
export const temporaryFolder = (): Disposable & { readonly path: string; file(name: string): string } => {
  const path = mkdtempSync(join(tmpdir(), 'aerie-linux-'))
  return {
    path,
    file: (name) => join(path, name),
    [Symbol.dispose]: () => {
      rmSync(path, { recursive: true, force: true })
    },
  }
}

/** Gives a file an extended attribute; nothing of ours ever does. */
export const setXattr = (path: string, name: string, value: Buffer): void => {
  const ran = Bun.spawnSync([
    'python3',
    '-c',
    'import os, sys; os.setxattr(sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]), follow_symlinks=False)',
    path,
    name,
    value.toString('hex'),
  ])
  if (ran.exitCode !== 0) throw new Error(`no attribute ${name} for ${path}: ${ran.stderr.toString()}`)
}

/** Whether the file system of temporary files has extended attributes: tmpfs has none of `user.` before Linux 6.6. */
export const canSet = ((): boolean => {
  using folder = temporaryFolder()
  writeFileSync(folder.file('f'), '')
  try {
    setXattr(folder.file('f'), 'user.x', Buffer.from('x'))
    return true
  } catch {
    return false
  }
})()

/** What each open descriptor of this process means, by number. */
export const openFds = (): ReadonlyMap<number, string> =>
  new Map(
    readdirSync('/proc/self/fd').flatMap((name) => {
      try {
        return [[Number(name), readlinkSync(`/proc/self/fd/${name}`)] as const]
      } catch {
        return [] // the folder's own
      }
    }),
  )

/** Waits for a condition, for what has no event to wait for. */
export const until = async (holds: () => boolean, what: string): Promise<void> => {
  const end = Date.now() + 5000
  while (!holds()) {
    if (Date.now() > end) throw new Error(`waited 5 s in vain: ${what}`)
    await Bun.sleep(5)
  }
}

/** A process that is not our child: its parent has ended. It sleeps for so many seconds. */
export const stranger = (seconds: number): number =>
  Number(Bun.spawnSync(['sh', '-c', `sleep ${seconds} >/dev/null 2>&1 & echo $!`]).stdout.toString())

/** A descriptor with these bytes to read. */
export const filled = (text: string): number => memfdSealed('test', Buffer.from(text))

// bun-types knows no `fd` here; Bun does.
export const connectFd = (fd: number, socket: Bun.SocketHandler) =>
  Bun.connect({ fd, socket } as unknown as Bun.UnixSocketOptions)
export const listenFd = (fd: number, socket: Bun.SocketHandler) =>
  Bun.listen({ fd, socket } as unknown as Bun.UnixSocketOptions)
