import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { AERIE, clean, cli, createVm, haveBinary, startDaemon, until, type Daemon } from './daemon.ts'

const at = (name: string) => ({ params: { name } })
const APPLETS = [
  'sh',
  'cat',
  'date',
  'echo',
  'id',
  'mkfifo',
  'pwd',
  'sleep',
  'tee',
  'touch',
  'printf',
  'true',
  'env',
  'head',
  'tr',
]

/**
 * What a command in a guest starts from, and where its words go: one guest of an image that says who it is and where.
 */
describe.skipIf(!haveBinary)('a command in a guest', () => {
  let daemon: Daemon
  const tree = mkdtempSync('/tmp/aerie-tree-')
  beforeAll(async () => {
    for (const folder of ['bin', 'etc', 'opt', 'srv/deep', 'root', 'tmp', 'home'])
      mkdirSync(join(tree, folder), { recursive: true })
    chmodSync(join(tree, 'tmp'), 0o1777)
    copyFileSync(Bun.which('busybox') ?? '/bin/busybox', join(tree, 'bin/busybox'))
    for (const name of APPLETS) symlinkSync('busybox', join(tree, 'bin', name))
    writeFileSync(join(tree, 'opt/tool'), '#!/bin/sh\necho "a tool"\n', { mode: 0o755 })
    writeFileSync(join(tree, 'etc/passwd'), 'root:x:0:0::/root:/bin/sh\nweb:x:1234:1234::/home:/bin/sh\n')
    writeFileSync(join(tree, 'etc/group'), 'root:x:0:\nweb:x:1234:\n')
    daemon = await startDaemon()
    const imported = await cli(daemon, [
      ...['image', 'import', 'own', tree, '--env', 'PATH=/opt:/bin', '--env', 'FOO=image', '--env', 'BOTH=image'],
      ...['--user', 'web', '--workdir', '/srv'],
    ])
    expect(imported).toMatchObject({ code: 0 })
    await createVm(daemon, {
      name: 's',
      image: 'own',
      memory_mb: 160,
      env: { BAR: 'vm', BOTH: 'vm' },
      cmd: ['sh', '-c', 'printf "ready> "; exec sleep 100000'],
    })
  }, 240_000)
  afterAll(async () => {
    await clean(daemon)
    rmSync(tree, { recursive: true, force: true })
  })
  const sh = (script: string, more: object = {}) =>
    daemon.client.call('vm.exec', { ...at('s'), body: { argv: ['sh', '-c', script], ...more } })
  const ASK = 'echo $FOO $BAR $BOTH $(id -u) $(pwd) $HOME $HOSTNAME'

  test('has the environment, the user and the folder of the image and the vm, by every way in', async () => {
    const own = 'image vm vm 1234 /srv /home s\n'

    expect((await sh(ASK)).stdout).toBe(own)
    expect(await cli(daemon, ['exec', 's', '--', 'sh', '-c', ASK])).toMatchObject({ code: 0, stdout: own })
    expect((await cli(daemon, ['exec', '-t', 's', '--', 'sh', '-c', ASK])).stdout).toBe(own.replace('\n', '\r\n'))
    expect(await cli(daemon, ['exec', 's', 'tool'])).toMatchObject({ code: 0, stdout: 'a tool\n' })
  }, 120_000)

  test('has what the caller wants instead, and a folder from where it would be', async () => {
    expect((await sh(ASK, { env: { BOTH: 'mine' }, user: '0', cwd: '/' })).stdout).toBe('image vm mine 0 / /root s\n')
    expect((await sh('pwd', { cwd: 'deep' })).stdout).toBe('/srv/deep\n')
    expect(await cli(daemon, ['exec', '-w', '..', 's', 'pwd'])).toMatchObject({ code: 0, stdout: '/\n' })
    expect(await cli(daemon, ['exec', '-w', 'none', 's', 'pwd'])).toMatchObject({ code: 126 })
  }, 120_000)

  /** The command line with arguments that the shell makes of what printf(1) says: not all bytes are text. */
  const aerieWith = async (words: string) => {
    const child = Bun.spawn(['bash', '-c', `exec "$0" ${words}`, AERIE], {
      env: { PATH: '/usr/bin:/bin', AERIE_HOST: `unix://${daemon.socket}` },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const out = Buffer.from(await new Response(child.stdout).bytes()).toString('hex')
    return [out, await new Response(child.stderr).text(), await child.exited] as const
  }

  test.each([
    ['a byte that is no UTF-8', `$'\\377'`, 'ff'],
    ['a word of Latin-1', `$'gr\\374n'`, '6772fc6e'],
    ['text beside a letter that is cut', `$'\\303\\244\\303'`, 'c3a4c3'],
    ['the sign for what was no UTF-8', `$'\\357\\277\\275'`, 'efbfbd'],
  ])('is given %s as it is', async (_, word, hex) => {
    expect(await aerieWith(`exec s -- printf %s ${word}`)).toEqual([hex, '', 0])
  })

  test.each([
    [`exec -e A=$'\\377' s -- true`, 125],
    [`cp s:/etc/$'\\377' /tmp/x`, 2],
    [`inspect $'s\\377'`, 2],
  ])('%s is refused, and not taken for another name', async (words, code) => {
    const [out, err, exit] = await aerieWith(words)
    expect([out, exit]).toEqual(['', code])
    expect(err).toContain('it is not UTF-8')
  })

  test.each([
    ['4294967295', 'user'],
    ['04294967295:0', 'user'],
    ['0:4294967295', 'group'],
    ['nobody-here', 'user'],
    ['+0', 'user'],
  ])('does not run as %s, which is nobody', async (user, what) => {
    const ran = await daemon.client
      .call('vm.exec', { ...at('s'), body: { argv: ['id'], user } })
      .catch((error: unknown) => error)
    expect(ran).toMatchObject({ code: 'guest_user_not_found' })
    expect(String(ran)).toContain(`Cannot use this user in the guest: ${what} "`)
  })

  test('leaves what it started in the background alive, and holds nobody up', async () => {
    const script = '(while :; do echo t; echo e >&2; date +%s >/tmp/beat; sleep 1; done) & echo started'
    const from = Date.now()
    expect((await sh(script)).stdout).toContain('started\n')
    expect(Date.now() - from).toBeLessThan(20_000)
    await until(async () => Number((await sh('cat /tmp/beat')).stdout) * 1000 > from + 4000)

    const { stdout } = await sh('echo $(($(date +%s) - $(cat /tmp/beat)))')
    expect(Number(stdout)).toBeLessThanOrEqual(2)
  }, 120_000)

  const FILTERS: readonly (readonly [string, string])[] = [
    ['a filter behind a FIFO', 'mkfifo /tmp/p$$; tee /tmp/l </tmp/p$$ & exec >/tmp/p$$; echo words'],
    ['a filter that takes its time', 'mkfifo /tmp/q$$; (sleep 0.1; cat) </tmp/q$$ & exec >/tmp/q$$; echo words'],
    ['a child that outlives it a little', '(sleep 0.1; echo words) &'],
    ['stderr through a filter', 'mkfifo /tmp/r$$; cat </tmp/r$$ & exec 2>/tmp/r$$; echo words >&2'],
  ]
  for (const [name, script] of FILTERS) {
    test(`has its last words through ${name}`, async () => {
      for (let i = 0; i < 5; i++) expect((await sh(script)).stdout).toBe('words\n')
      expect(
        await cli(daemon, ['run', '--memory', '160m', 'own', '--', 'sh', '-c', script.replaceAll('$$', '')]),
      ).toMatchObject({
        code: 0,
        stdout: 'words\n',
      })
    }, 240_000)
  }

  test('what a running workload said without a newline is in its log', async () => {
    expect((await cli(daemon, ['logs', 's'])).stdout).toBe('ready> ')
    const follow = Bun.spawn([AERIE, 'logs', '-f', 's'], {
      cwd: '/',
      env: { AERIE_HOST: `unix://${daemon.socket}` },
      stdout: 'pipe',
    })
    const first = await follow.stdout.getReader().read()
    follow.kill()
    expect(Buffer.from(first.value ?? []).toString()).toBe('ready> ')
  }, 120_000)

  test('what a workload wrote comes back byte for byte', async () => {
    const script = 'printf "\\355\\253\\356\\333\\003\\n"; head -c 3000000 /dev/zero | tr "\\0" x; echo; printf hi'
    expect(
      (await cli(daemon, ['run', '-d', '--name', 'bytes', '--memory', '160m', 'own', '--', 'sh', '-c', script])).code,
    ).toBe(0)
    await cli(daemon, ['wait', 'bytes'])
    const logs = Bun.spawn([AERIE, 'logs', 'bytes'], {
      cwd: '/',
      env: { AERIE_HOST: `unix://${daemon.socket}` },
      stdout: 'pipe',
    })

    const bytes = Buffer.from(await new Response(logs.stdout).arrayBuffer())
    expect(bytes.subarray(0, 6).toString('hex')).toBe('edabeedb030a')
    expect(bytes.subarray(6).toString()).toBe(`${'x'.repeat(3_000_000)}\nhi`)
    expect((await cli(daemon, ['rm', 'bytes'])).code).toBe(0)
  }, 240_000)

  test('what a terminal workload said is in its log, though somebody watched', async () => {
    await createVm(daemon, {
      name: 'tty',
      image: 'own',
      memory_mb: 160,
      tty: true,
      hold: true,
      cmd: ['sh', '-c', 'echo see me; sleep 1; echo see me too; sleep 100000'],
    })
    const attached = await daemon.client.process('vm.attach', at('tty'), { stdin: false })
    await until(async () => (await cli(daemon, ['logs', 'tty'])).stdout === 'see me\r\nsee me too\r\n')
    attached.close()
    await cli(daemon, ['rm', '-f', 'tty'])
  }, 240_000)
})
