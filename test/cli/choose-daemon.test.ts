import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { answers, reach, readToken, selfOf, tailOf, type World } from '../../src/cli/choose-daemon.ts'
import { Fault } from '../../src/lib/fault.ts'
import { until } from '../linux/support.ts'

let home = ''
const running: { stop(): unknown }[] = []
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'aerie-reach-'))
})
afterEach(async () => {
  for (const server of running.splice(0)) server.stop()
  for (const pid of pids())
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      /* it went */
    }
  for (const pid of pids()) await until(() => !lives(pid), `process ${pid} has ended, which writes to the folder`)
  rmSync(home, { recursive: true, force: true })
})

/** Whether a process can still do something: one that has ended, and that nobody has waited for yet, cannot. */
const lives = (pid: number): boolean => {
  try {
    return !/^\d+ \(.*\) [ZX] /s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}
const listenAt = (path: string) => {
  running.push(
    Bun.listen({
      unix: path,
      socket: {
        data() {
          /* nothing is said */
        },
      },
    }),
  )
}
/** A program in the daemon's place: what it does is the script, its words are "$@". */
const program = (script: string): readonly string[] => {
  const file = join(home, 'program.ts')
  writeFileSync(
    file,
    `import { appendFileSync, existsSync, mkdirSync, rmSync, writeFileSync, openSync } from 'node:fs'
appendFileSync(${JSON.stringify(join(home, 'pids'))}, process.pid + '\\n')
const flag = (name: string) => process.argv[process.argv.indexOf(name) + 1]!
const socket = flag('--socket'), run = flag('--run'), state = flag('--state')
${script}`,
  )
  return [process.execPath, file]
}
const SERVES = `mkdirSync(run, { recursive: true, mode: 0o700 })
const timer = Bun.listen({ unix: socket, socket: { data() {} } })`
const pids = (): number[] => {
  try {
    return readFileSync(join(home, 'pids'), 'utf8').trim().split('\n').map(Number)
  } catch {
    return []
  }
}

const world = (more: Partial<World> = {}): World => ({
  env: { PATH: process.env['PATH'] },
  uid: process.getuid?.() ?? 0,
  self: ['/nonexistent'],
  startMs: 4000,
  system: { mode: 'system', state: join(home, 'var'), run: join(home, 'sys'), socket: join(home, 'sys.sock') },
  user: { mode: 'user', state: join(home, 'state'), run: join(home, 'run'), socket: join(home, 'run/aerie.sock') },
  ...more,
})
const faultOf = async (promise: Promise<unknown>): Promise<Fault> => {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (!(error instanceof Fault)) throw new Error(`expected a fault, got ${String(error)}`)
  return error
}
const unix = (path: string) => ({ kind: 'unix' as const, path })

describe('the daemon that serves', () => {
  test('is the one that is named, by flag before environment', async () => {
    const env = { AERIE_HOST: 'http://10.0.0.1:7777', AERIE_TOKEN: 'sesame' }

    expect(await reach(world({ env }), { host: '/x.sock' }, 'use')).toEqual({ endpoint: unix('/x.sock'), how: 'asked' })
    expect(await reach(world({ env }), {}, 'start')).toEqual({
      endpoint: { kind: 'http', origin: 'http://10.0.0.1:7777', token: 'sesame' },
      how: 'asked',
    })
  })

  test('else the one of the host, else the one of this user', async () => {
    const it = world()
    mkdirSync(it.user.run, { mode: 0o700 })
    listenAt(it.user.socket)
    expect(await reach(it, {}, 'start')).toEqual({ endpoint: unix(it.user.socket), how: 'user' })

    listenAt(it.system.socket)
    expect(await reach(it, {}, 'start')).toEqual({ endpoint: unix(it.system.socket), how: 'system' })
    expect(await reach(it, { host: 'user' }, 'use')).toEqual({ endpoint: unix(it.user.socket), how: 'user' })
    expect(await reach(it, { host: 'system' }, 'use')).toEqual({ endpoint: unix(it.system.socket), how: 'asked' })
  })

  test('is nobody where none answers and none is wanted: one clear fault', async () => {
    expect(await faultOf(reach(world(), {}, 'use'))).toMatchObject({ code: 'daemon_missing', kind: 'unavailable' })
  })

  test('is not whoever left a socket behind', async () => {
    const it = world()
    Bun.spawnSync([
      'python3',
      '-c',
      `import socket; socket.socket(socket.AF_UNIX).bind(${JSON.stringify(it.system.socket)})`,
    ])

    expect(await answers(it.system.socket)).toBe('ECONNREFUSED')
    expect(await answers(join(home, 'none'))).toBe('ENOENT')
    expect((await faultOf(reach(it, {}, 'use'))).code).toBe('daemon_missing')
  })

  test('is nobody in a folder that others may write, own, or point elsewhere', async () => {
    const it = world()
    mkdirSync(it.user.run)
    chmodSync(it.user.run, 0o777)
    listenAt(it.user.socket)
    expect((await faultOf(reach(it, {}, 'start'))).message).toContain('others may write to it')

    chmodSync(it.user.run, 0o700)
    expect((await faultOf(reach({ ...it, uid: it.uid + 1 }, {}, 'start'))).message).toContain('it belongs to user')

    const link = join(home, 'link')
    symlinkSync(it.user.run, link)
    expect(await faultOf(reach({ ...it, user: { ...it.user, run: link } }, {}, 'start'))).toMatchObject({
      code: 'folder_untrusted',
      kind: 'forbidden',
    })
  })
})

describe('a daemon of this user', () => {
  test('is started with its places, in a session of its own, and waited for', async () => {
    const it = world({
      self: program(
        `writeFileSync(state + '/said', JSON.stringify(process.argv.slice(2)) + '\\n' + process.cwd()); await Bun.sleep(200); ${SERVES}`,
      ),
    })

    expect(await reach(it, {}, 'start')).toEqual({ endpoint: unix(it.user.socket), how: 'started' })

    const [words, cwd] = readFileSync(join(it.user.state, 'said'), 'utf8').split('\n')
    expect(JSON.parse(words ?? '')).toEqual([
      'serve',
      '--user',
      '--state',
      it.user.state,
      '--run',
      it.user.run,
      '--socket',
      it.user.socket,
      '--idle-exit-s',
      '10',
    ])
    expect(cwd).toBe('/')
    const [pid = 0] = pids()
    expect(readFileSync(`/proc/${pid}/stat`, 'utf8').split(' ')[5]).toBe(String(pid)) // its session is its own
  })

  test('that several ask for at once is one', async () => {
    const it = world({
      self: program(`try { openSync(state + '/lock', 'wx') } catch { process.exit(5) }
await Bun.sleep(300); ${SERVES}`),
    })

    const all = await Promise.all(Array.from({ length: 4 }, () => reach(it, {}, 'start')))

    expect(all.map((one) => one.how)).toEqual(['started', 'started', 'started', 'started'])
    expect(await answers(it.user.socket)).toBe(true)
  })

  test('is started again when the one that held the lock was on its way out', async () => {
    const it = world({
      self: program(`if (!existsSync(state + '/tried')) { writeFileSync(state + '/tried', ''); process.exit(5) }
${SERVES}`),
    })

    expect((await reach(it, {}, 'start')).how).toBe('started')
    expect(pids()).toHaveLength(2)
  })

  test('that cannot come up is a fault with its last words', async () => {
    const it = world({
      self: program(
        `console.error('aerie: Cannot find /dev/everything'); console.error(JSON.stringify({ level: 50, msg: 'Gave up', err: { message: 'no luck' } })); process.exit(7)`,
      ),
    })

    const fault = await faultOf(reach(it, {}, 'start'))

    expect(fault).toMatchObject({ code: 'daemon_not_started', kind: 'unavailable' })
    expect(fault.message).toBe(
      'Cannot start a daemon for this user: it ended with code 7\n  aerie: Cannot find /dev/everything\n  Gave up: no luck',
    )
    expect(fault.hint).toContain(join(it.user.state, 'daemon.log'))
  })

  test('that hangs is a fault in time', async () => {
    const it = world({ self: program('setInterval(() => {}, 1000)'), startMs: 500 })

    expect((await faultOf(reach(it, {}, 'start'))).message).toContain('it does not answer after 0.5 s')
  })

  test('whose folder cannot be made is a fault', async () => {
    writeFileSync(join(home, 'file'), '')
    const it = world()

    expect(
      (await faultOf(reach({ ...it, user: { ...it.user, state: join(home, 'file/state') } }, {}, 'start'))).message,
    ).toContain('cannot be made')
  })
})

test('a token comes from a file or from the environment', () => {
  writeFileSync(join(home, 'token'), ' sesame\n')

  expect([
    readToken({ AERIE_TOKEN: 'env' }, undefined),
    readToken({ AERIE_TOKEN: 'env' }, join(home, 'token')),
    readToken({}, undefined),
  ]).toEqual(['env', 'sesame', undefined])
})

test('the end of a log is its last dozen lines', () => {
  expect(tailOf(Array.from({ length: 30 }, (_, at) => `line ${at}`).join('\n')).split('\n')).toEqual(
    Array.from({ length: 12 }, (_, at) => `  line ${at + 18}`),
  )
})

test('this program starts itself by Bun and its first file, or by the one file that it is', () => {
  expect(selfOf()[0]).toBe(process.execPath)
})
