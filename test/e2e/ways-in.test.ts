import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
  copyFileSync,
  symlinkSync,
} from 'node:fs'
import { join } from 'node:path'
import type { Raw } from '../../src/client/raw.ts'
import { isRoot, setXattr } from '../linux/support.ts'
import { AERIE, clean, cli, createVm, haveBinary, startDaemon, until, type Daemon } from './daemon.ts'

const at = (name: string) => ({ params: { name } })

/** The other ways into a real guest: ports, attach, images of one's own; and what is true after a crash. */
describe.skipIf(!haveBinary)('ways into a guest', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon()
    await createVm(daemon, {
      name: 'w',
      cmd: ['sh', '-c', 'httpd -p 8080 -h /www; while read line; do echo "got $line"; done; sleep 100000'],
    })
  }, 240_000)
  afterAll(async () => {
    await clean(daemon)
  })
  const exec = (script: string) => daemon.client.call('vm.exec', { ...at('w'), body: { argv: ['sh', '-c', script] } })

  test('forward opens a port of the host into the guest', async () => {
    await until(async () => (await exec('wget -q -O /dev/null http://127.0.0.1:8080/')).exit_code === 0) // the workload has come up
    const forward = Bun.spawn([AERIE, 'forward', 'w', '0:8080'], {
      cwd: '/',
      env: { AERIE_HOST: `unix://${daemon.socket}` },
      stdout: 'pipe',
      stderr: 'pipe',
    })
    try {
      let said = ''
      void (async () => {
        for await (const part of forward.stdout) said += Buffer.from(part).toString()
      })()
      void (async () => {
        for await (const part of forward.stderr) said += Buffer.from(part).toString()
      })()
      await until(() => /:\d{4,5}/.test(said))
      const port = /127\.0\.0\.1:(\d+)/.exec(said)?.[1]

      expect(await (await fetch(`http://127.0.0.1:${port}/`)).text()).toContain('microVM')
    } finally {
      forward.kill()
      await forward.exited
    }
  }, 240_000)

  test('connections that are forwarded leave room for commands, and one too many is told why', async () => {
    await until(async () => (await exec('wget -q -O /dev/null http://127.0.0.1:8080/')).exit_code === 0)
    const open: Raw[] = []
    const refused: unknown[] = []
    const dial = async (): Promise<void> => {
      const one = await daemon.client.raw('vm.forward', { ...at('w'), query: { port: 8080 } })
      open.push(one)
      void one
        .bytes()
        .next()
        .catch((error: unknown) => refused.push(error))
    }
    try {
      for (let n = 0; n < 380; n += 95) await Promise.all(Array.from({ length: 95 }, dial)) // more at once than its queue holds
      expect(refused).toEqual([])
      await Promise.all(Array.from({ length: 20 }, dial))
      await until(() => refused.length > 0)

      expect(refused[0]).toMatchObject({
        code: 'guest_busy',
        message: 'The guest is busy: 384 connections into it are open already',
        hint: expect.stringContaining('the guest itself is well') as unknown,
      })
      expect((await exec('echo room')).stdout).toBe('room\n')
      expect(await daemon.client.call('vm.stats', at('w'))).toMatchObject({ name: 'w' })
      expect(await daemon.client.call('vm.stat', { ...at('w'), query: { path: '/www' } })).toMatchObject({
        is_dir: true,
      })
    } finally {
      for (const one of open) one.close()
    }
  }, 240_000)

  test('pause halts the guest and resume runs it on', async () => {
    expect((await cli(daemon, ['pause', 'w'])).code).toBe(0)
    expect(await daemon.client.call('vm.get', at('w'))).toMatchObject({ status: 'paused' })
    expect((await cli(daemon, ['exec', 'w', '--', 'true'])).code).toBe(125)
    expect((await cli(daemon, ['resume', 'w'])).code).toBe(0)
    expect((await exec('echo on')).stdout).toBe('on\n')
  }, 240_000)

  test('events and wait tell what happens, as it happens', async () => {
    const types: string[] = []
    const stop = new AbortController()
    let after = 0
    for await (const event of daemon.client.sse('events', { query: { after: 0, follow: false } }))
      after = (JSON.parse(event.data) as { seq: number }).seq
    const reading = (async () => {
      for await (const event of daemon.client.sse('events', { query: { name: 'w', after } }, { signal: stop.signal }))
        types.push((JSON.parse(event.data) as { type: string }).type)
    })().catch(() => undefined)
    const waiting = cli(daemon, ['wait', 'w'])

    await cli(daemon, ['stop', 'w'])

    expect(await waiting).toMatchObject({ code: 0, stdout: '143\n' }) // what the workload ended with: SIGTERM
    await until(() => types.includes('VM_STOPPED'))
    stop.abort()
    await reading
    expect(types).toEqual(['VM_STOPPING', 'VM_STOPPED'])
    expect((await cli(daemon, ['rm', 'w'])).code).toBe(0)
  }, 240_000)
})

describe.skipIf(!haveBinary)("an image of one's own", () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon()
  })
  afterAll(async () => {
    await clean(daemon)
  })

  test('a folder becomes an image with its entrypoint, user, environment and file capabilities, and a vm of it runs as they say', async () => {
    const folder = mkdtempSync('/tmp/aerie-tree-')
    try {
      mkdirSync(join(folder, 'bin'))
      mkdirSync(join(folder, 'etc'))
      mkdirSync(join(folder, 'srv'))
      chmodSync(join(folder, 'srv'), 0o777)
      copyFileSync(Bun.which('busybox') ?? '/bin/busybox', join(folder, 'bin/busybox'))
      symlinkSync('busybox', join(folder, 'bin/sh'))
      mkdirSync(join(folder, 'cap'))
      copyFileSync(join(folder, 'bin/busybox'), join(folder, 'cap/busybox'))
      if (isRoot)
        setXattr(
          join(folder, 'cap/busybox'),
          'security.capability',
          Buffer.from('0100000201000000000000000000000000000000', 'hex'),
        ) // cap_chown=ep
      writeFileSync(join(folder, 'etc/passwd'), 'root:x:0:0::/:/bin/sh\nweb:x:1234:1234::/srv:/bin/sh\n')
      writeFileSync(join(folder, 'etc/group'), 'root:x:0:\nweb:x:1234:\n')

      const imported = await cli(daemon, [
        'image',
        'import',
        'mine',
        folder,
        '--entrypoint',
        '["/bin/sh","-c"]',
        '--cmd',
        '["echo $A; busybox id -u; busybox pwd; busybox touch f; busybox chown 5 f; /cap/busybox chown 7 f; busybox stat -c %u f; exit 3"]',
        '--env',
        'A=from-image',
        '--user',
        'web',
        '--workdir',
        '/srv',
      ])
      expect(imported).toMatchObject({ code: 0 })
      expect((await cli(daemon, ['image', 'ls', '-o', 'name'])).stdout.split('\n')).toContain('mine')

      expect(await cli(daemon, ['run', '--memory', '160m', 'mine'])).toMatchObject({
        code: 3,
        stdout: `from-image\n1234\n/srv\n${isRoot ? 7 : 1234}\n`,
        stderr: expect.stringContaining('not permitted') as unknown,
      })
      expect(await cli(daemon, ['image', 'rm', 'mine'])).toMatchObject({ code: 0 })
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  }, 240_000)

  test('an image or kernel that a vm uses stays', async () => {
    await createVm(daemon, { name: 'user-of-base', memory_mb: 160, cmd: ['sh', '-c', 'sleep 3; exit 9'] })

    expect(await cli(daemon, ['image', 'rm', 'base'])).toMatchObject({ code: 5 })
    const kernel = (await daemon.client.call('kernel.list', {}))[0]
    expect(await cli(daemon, ['kernel', 'rm', kernel?.name ?? ''])).toMatchObject({ code: 5 })
  }, 240_000)

  test('a real workload that ends while the daemon is away has its exit code and its log', async () => {
    await daemon.crash()
    await Bun.sleep(6000) // the workload ends in this time

    daemon = await startDaemon({ folder: daemon.folder })

    expect(
      await daemon.client.call('vm.wait', { ...at('user-of-base'), query: { for: 'exit', timeout_s: 60 } }),
    ).toMatchObject({ status: 'stopped', exit_code: 9 })
  }, 240_000)
})

test.skipIf(!haveBinary)('the compiled file stands alone: no folder, no environment, no root needed to ask it', () => {
  const ran = Bun.spawnSync([AERIE, '--version'], { cwd: '/', env: {}, stdout: 'pipe' })
  expect(ran.exitCode).toBe(0)
  expect(ran.stdout.toString()).toBe(
    `aerie ${(JSON.parse(readFileSync(join(import.meta.dir, '../../package.json'), 'utf8')) as { version: string }).version}\n`,
  )
})
