import { describe, expect, test } from 'bun:test'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createHash } from 'node:crypto'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { FakeDaemon } from '../client/daemon.ts'
import { aerie, envOf, PROGRAM, Typist } from './aerie.ts'

const sha = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')
const noise = (bytes: number): Buffer => {
  const it = Buffer.alloc(bytes)
  for (let at = 0; at + 4 <= bytes; at += 4) it.writeUInt32LE(Math.imul(at ^ 0x5bd1e995, 2_654_435_761) >>> 0, at)
  return it
}

describe('run', () => {
  test('ends with the code of the command, prints its output, and leaves no vm', async () => {
    await using daemon = new FakeDaemon()

    const said = await aerie(['run', 'base', '--', 'sh', '-c', 'echo hi; echo oh >&2; exit 7'], daemon)

    expect(said).toMatchObject({ code: 7, out: 'hi\n', err: 'oh\n' })
    expect(daemon.vms.size).toBe(0)
    expect(daemon.requests[0]?.headers.get('idempotency-key')).toMatch(/^[0-9a-f-]{36}$/)
  })

  test('sends the flags as the body of a create: held, and deleted at its end', async () => {
    let body: unknown
    await using daemon = new FakeDaemon(async (request, path) => {
      if (path === '/api/v1/vms' && request.method === 'POST') body = await request.clone().json()
      return undefined as never
    })

    await aerie(
      [
        'run',
        '-m',
        '1g',
        '--cpus=2',
        '--disk',
        '1g',
        '-e',
        'A=1',
        '-eB',
        '--env',
        'GONE',
        '-w',
        '/srv',
        '-u',
        'nobody:nogroup',
        '--label',
        'a/b=c=d',
        '--stop-timeout',
        '2.5s',
        '--entrypoint',
        '["true"]',
        '--network',
        'user',
        '--port',
        '80',
        '--kernel-cmdline',
        'quiet',
        '--shm-size',
        '1g',
        '--disk-io-bps',
        '100MB/s',
        'alpine:3',
        'x',
        '-y',
      ],
      { ...daemon, socket: daemon.socket, env: { B: 'two' } },
    )

    expect(body).toMatchObject({
      image: 'alpine:3',
      memory_mb: 1024,
      cpu_cores: 2,
      disk_mb: 1024,
      env: { A: '1', B: 'two' },
      workdir: '/srv',
      user: 'nobody:nogroup',
      metadata: { 'a/b': 'c=d' },
      stop_timeout_s: 3,
      entrypoint: ['true'],
      cmd: ['x', '-y'],
      network: { mode: 'user' },
      port: 80,
      kernel_cmdline: 'quiet',
      shm_size_mb: 1024,
      disk_io_bps: 100 * 2 ** 20,
      hold: true,
      auto_remove: true,
      tty: false,
    })
    expect(body).not.toHaveProperty('env.GONE')
  })

  test('with a name keeps the vm, with --rm it does not', async () => {
    await using daemon = new FakeDaemon()

    await aerie(['run', '--name', 'kept', 'base', 'true'], daemon)
    await aerie(['run', '--name', 'gone', '--rm', 'base', 'true'], daemon)

    expect([...daemon.vms.values()].map((vm) => [vm.name, vm.auto_remove])).toEqual([['kept', false]])
  })

  test('passes 8 MiB of any bytes through a pipe, and the end of it', async () => {
    await using daemon = new FakeDaemon()
    const bytes = noise(8 * 2 ** 20)

    const said = await aerie(['run', '-i', 'base', 'cat'], { ...daemon, socket: daemon.socket, stdin: bytes })

    expect(said.code).toBe(0)
    expect(sha(said.bytes)).toBe(sha(bytes))
  })

  test.each([
    ['TERM', 143],
    ['KILL', 137],
    ['INT', 130],
  ] as const)('says the signal %s of the command as %d', async (signal, code) => {
    await using daemon = new FakeDaemon()

    expect((await aerie(['run', 'base', '--', 'sh', '-c', `kill -${signal} $$`], daemon)).code).toBe(code)
  })

  test.each(['SIGINT', 'SIGTERM'] as const)('passes %s on to the command, which decides', async (signal) => {
    await using daemon = new FakeDaemon()
    const child = Bun.spawn(
      [
        ...PROGRAM,
        'run',
        'base',
        '--',
        'sh',
        '-c',
        'trap "echo got it; exit 9" INT TERM; echo ready; while :; do sleep 0.05; done',
      ],
      { env: envOf(daemon), stdin: 'ignore', stdout: 'pipe', stderr: 'inherit' },
    )
    let out = ''
    for await (const bytes of child.stdout) {
      out += Buffer.from(bytes).toString()
      if (out === 'ready\n') child.kill(signal)
    }

    expect([out, await child.exited]).toEqual(['ready\ngot it\n', 9])
  })

  test('is not held up by a command that ignores ^C: the second one ends it, and the vm', async () => {
    await using daemon = new FakeDaemon()
    const child = Bun.spawn(
      [...PROGRAM, 'run', 'base', '--', 'sh', '-c', 'trap "" INT; echo ready; while :; do sleep 0.05; done'],
      { env: envOf(daemon), stdin: 'ignore', stdout: 'pipe', stderr: 'inherit' },
    )
    const reader = child.stdout.getReader()
    await reader.read()
    for (let times = 0; times < 2; times++) {
      child.kill('SIGINT')
      while (daemon.signals.length <= times && child.exitCode === null) await Bun.sleep(5)
    }

    expect(await child.exited).toBe(130)
    expect(daemon.vms.size).toBe(0)
  })

  test('that is interrupted while the vm boots takes the vm back', async () => {
    let named = ''
    const deleted = Promise.withResolvers<string>()
    const booting = Promise.withResolvers<void>()
    await using daemon = new FakeDaemon((request, path) => {
      if (request.method === 'DELETE') {
        deleted.resolve(path.split('/').at(-1) ?? '')
        return new Response(null, { status: 204 })
      }
      if (path !== '/api/v1/vms') return undefined
      return request.json().then((body) => {
        named = (body as { name: string }).name
        booting.resolve()
        return new Promise<Response>(() => undefined)
      })
    })
    const child = Bun.spawn([...PROGRAM, 'run', 'base', 'true'], {
      env: envOf(daemon),
      stdin: 'ignore',
      stdout: 'ignore',
      stderr: 'inherit',
    })

    await booting.promise
    child.kill('SIGINT')

    expect(await child.exited).toBe(130)
    expect(await deleted.promise).toBe(named)
  })

  test('with --timeout ends the command with 124 and takes the vm away', async () => {
    await using daemon = new FakeDaemon()

    const said = await aerie(['run', '--timeout', '300ms', 'base', 'sleep', '60'], daemon)

    expect(said.code).toBe(124)
    expect(daemon.signals).toEqual([15])
    expect(daemon.vms.size).toBe(0)
  })

  test.each([
    [
      'a daemon that refuses',
      ['run', 'base'],
      (): Response => Response.json({ title: 'No', code: 'image_not_found', hint: 'aerie image ls' }, { status: 404 }),
    ],
    ['an unknown flag', ['run', '--memroy', '1g', 'base'], undefined],
    ['no image', ['run'], undefined],
  ] as const)('is 125 for %s', async (_, argv, answer) => {
    await using daemon = new FakeDaemon(answer)

    expect((await aerie(argv, daemon)).code).toBe(125)
  })

  test('is 125 where the daemon goes away under the command', async () => {
    const daemon = new FakeDaemon()
    const child = Bun.spawn([...PROGRAM, 'run', 'base', '--', 'sh', '-c', 'echo ready; sleep 60'], {
      env: envOf(daemon),
      stdin: 'ignore',
      stdout: 'pipe',
      stderr: 'pipe',
    })
    await child.stdout.getReader().read()

    await daemon[Symbol.asyncDispose]()

    expect(await child.exited).toBe(125)
    expect(await new Response(child.stderr).text()).toContain('Lost the connection')
  })

  test('says nothing when nobody reads its output any more', async () => {
    await using daemon = new FakeDaemon()
    const script = `set -o pipefail; ${PROGRAM.join(' ')} run base yes | head -1`

    const child = Bun.spawn(['bash', '-c', script], {
      env: envOf(daemon),
      stdin: 'ignore',
      stdout: 'pipe',
      stderr: 'pipe',
    })

    expect([
      await new Response(child.stdout).text(),
      await new Response(child.stderr).text(),
      await child.exited,
    ]).toEqual(['y\n', '', 141])
    expect(daemon.vms.size).toBe(0)
  })

  test('fails where its output does not fit on the disk', async () => {
    await using daemon = new FakeDaemon()
    const child = Bun.spawn([...PROGRAM, 'run', 'base', 'echo', 'hi'], {
      env: envOf(daemon),
      stdin: 'ignore',
      stdout: Bun.file('/dev/full'),
      stderr: 'pipe',
    })

    expect(await child.exited).toBe(125)
    expect(await new Response(child.stderr).text()).toContain('the disk is full')
  })

  test('-d prints the name and leaves the vm', async () => {
    await using daemon = new FakeDaemon()

    const said = await aerie(['run', '-d', '--name', 'web', 'nginx'], daemon)

    expect([said.code, said.out]).toEqual([0, 'web\n'])
    expect(daemon.find('web')?.body).toMatchObject({ auto_remove: false })
    expect(daemon.find('web')?.body.hold).toBeUndefined()
  })

  test('finds another name when its own is taken', async () => {
    let tries = 0
    await using daemon = new FakeDaemon((request, path) =>
      request.method === 'POST' && path === '/api/v1/vms' && tries++ === 0
        ? Response.json({ title: 'taken', code: 'vm_exists' }, { status: 409 })
        : undefined,
    )

    expect((await aerie(['run', 'base', 'echo', 'ok'], daemon)).out).toBe('ok\n')
    expect((await aerie(['run', '--name', 'mine', 'base', 'true'], { socket: daemon.socket })).code).toBe(0)
  })
})

describe('on a terminal', () => {
  test('the guest has the size from the first byte, and hears of a new one', async () => {
    await using daemon = new FakeDaemon()
    using person = new Typist(
      ['run', 'base', '--', 'sh', '-c', 'trap "stty size" WINCH; stty size; echo ready; while :; do sleep 0.05; done'],
      { socket: daemon.socket, cols: 101, rows: 33 },
    )

    await person.sees('33 101')
    await person.sees('ready')
    person.resize(90, 20)
    await person.sees('20 90')

    expect(daemon.resized.at(-1)).toEqual([90, 20])
  })

  test('^C is a byte for the guest, not a signal for us', async () => {
    await using daemon = new FakeDaemon()
    using person = new Typist(
      ['exec', 'a', '--', 'sh', '-c', 'trap "echo caught; exit 5" INT; echo ready; while :; do sleep 0.05; done'],
      { socket: daemon.socket },
    )
    daemon.add({ name: 'a' })

    await person.sees('ready')
    person.type('\x03')
    await person.sees('caught')

    expect(await person.exited).toBe(5)
    expect(daemon.signals).toEqual([])
  })

  test('^P ^Q leaves a vm that is kept, and it runs on', async () => {
    await using daemon = new FakeDaemon()
    using person = new Typist(['run', '--name', 'kept', 'base', '--', 'cat'], { socket: daemon.socket })

    person.type('hello\r')
    await person.sees(/hello\r\nhello/)
    person.type('\x10\x11')
    await person.sees('kept runs on')

    expect(await person.exited).toBe(0)
    expect(daemon.find('kept')).toBeDefined()
  })

  test('the terminal is itself again afterwards', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    const script = `${PROGRAM.join(' ')} exec a true; stty -a | grep -o -- '-\\?icanon'; echo over`
    const child = Bun.spawn(['bash', '-c', script], {
      env: envOf(daemon),
      terminal: {
        data: (_, bytes) => {
          seen += Buffer.from(bytes).toString()
        },
      },
    })
    let seen = ''

    await child.exited

    expect(seen).toMatch(/^icanon\r\nover/m)
  })

  test('a line feed of the guest is one line down and nothing else', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    using person = new Typist(['exec', 'a', '--', 'sh', '-c', 'stty -opost; printf "one\\ntwo|"'], {
      socket: daemon.socket,
    })

    await person.exited

    expect(person.seen).toContain('one\ntwo|')
  })

  test('-T gives the guest none, and an output that is no terminal neither', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    using person = new Typist(['exec', '-T', 'a', '--', 'sh', '-c', 'test -t 1 && echo tty || echo pipe'], {
      socket: daemon.socket,
    })

    await person.sees('pipe')
    expect((await aerie(['exec', 'a', '--', 'sh', '-c', 'test -t 1 && echo tty || echo pipe'], daemon)).out).toBe(
      'pipe\n',
    )
    expect(
      (await aerie(['exec', '-it', 'a', '--', 'sh', '-c', 'test -t 1 && echo tty || echo pipe'], daemon)).out,
    ).toBe('tty\r\n')
  })
})

describe('exec', () => {
  test('has env, folder, user and time-out of the flags', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })

    expect((await aerie(['exec', '-e', 'X=1', 'a', 'sh', '-c', 'echo $X'], daemon)).out).toBe('1\n')
    expect(await aerie(['exec', 'a', 'no-such-program'], daemon)).toMatchObject({
      code: 127,
      err: 'aerie: Cannot find "no-such-program"\n',
    })
  })

  test('leaves stdin to others with --no-stdin', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    const script = `{ ${PROGRAM.join(' ')} exec --no-stdin a cat; cat; }`
    const child = Bun.spawn(['bash', '-c', script], {
      env: envOf(daemon),
      stdin: Buffer.from('for cat\n'),
      stdout: 'pipe',
    })

    expect(await new Response(child.stdout).text()).toBe('for cat\n')
  })
})

describe('cp', () => {
  const setUp = () => {
    const daemon = new FakeDaemon()
    const here = mkdtempSync(join(tmpdir(), 'aerie-cp-'))
    daemon.add({ name: 'a' })
    daemon.add({ name: 'b' })
    mkdirSync(join(daemon.guest, 'srv'))
    writeFileSync(join(daemon.guest, 'srv/file'), 'in the guest')
    mkdirSync(join(here, 'dir/sub'), { recursive: true })
    writeFileSync(join(here, 'dir/sub/x'), 'x')
    writeFileSync(join(here, 'one'), 'one')
    const cp = (...argv: string[]) => aerie(['cp', ...argv], { socket: daemon.socket, cwd: here })
    const guest = (path: string) => readFileSync(join(daemon.guest, path), 'utf8')
    const host = (path: string) => readFileSync(join(here, path), 'utf8')
    return {
      daemon,
      here,
      cp,
      guest,
      host,
      async [Symbol.asyncDispose]() {
        await daemon[Symbol.asyncDispose]()
        rmSync(here, { recursive: true, force: true })
      },
    }
  }

  test('puts a file into a folder, under a name, and over a file', async () => {
    await using it = setUp()

    expect((await it.cp('one', 'a:/srv')).code).toBe(0)
    expect((await it.cp('one', 'a:/srv/two')).code).toBe(0)
    expect((await it.cp('one', 'a:srv/file')).code).toBe(0)

    expect([it.guest('srv/one'), it.guest('srv/two'), it.guest('srv/file')]).toEqual(['one', 'one', 'one'])
  })

  test('puts a folder into a folder, as a folder, and its content', async () => {
    await using it = setUp()

    for (const [from, to] of [
      ['dir', 'a:/srv'],
      ['dir', 'a:/new'],
      ['dir/.', 'a:/srv'],
      ['dir/', 'a:/srv/named'],
    ] as const)
      expect((await it.cp(from, to)).code).toBe(0)

    expect([
      it.guest('srv/dir/sub/x'),
      it.guest('new/sub/x'),
      it.guest('srv/sub/x'),
      it.guest('srv/named/sub/x'),
    ]).toEqual(['x', 'x', 'x', 'x'])
  })

  test('fetches a file and a folder likewise', async () => {
    await using it = setUp()

    for (const [from, to] of [
      ['a:/srv/file', '.'],
      ['a:/srv/file', 'named'],
      ['a:/srv', 'tree'],
      ['a:/srv/.', 'dir'],
      ['a:/srv', 'dir'],
    ] as const)
      expect((await it.cp(from, to)).code).toBe(0)

    for (const path of ['file', 'named', 'tree/file', 'dir/file', 'dir/srv/file'])
      expect(it.host(path)).toBe('in the guest')
  })

  test('goes from vm to vm', async () => {
    await using it = setUp()

    expect((await it.cp('a:/srv', 'b:/copy')).code).toBe(0)

    expect(it.guest('copy/file')).toBe('in the guest')
  })

  test('is a tar on stdin and stdout with -', async () => {
    await using it = setUp()
    const script = `${PROGRAM.join(' ')} cp a:/srv - | tar xO srv/file; tar c -C dir sub | ${PROGRAM.join(' ')} cp - a:/srv`

    const child = Bun.spawn(['bash', '-c', script], {
      cwd: it.here,
      env: envOf(it.daemon),
      stdout: 'pipe',
      stderr: 'pipe',
    })

    expect([await new Response(child.stdout).text(), await child.exited]).toEqual(['in the guest', 0])
    expect(it.guest('srv/sub/x')).toBe('x')
  })

  test('copies a link as a link, and with -L what it leads to', async () => {
    await using it = setUp()
    symlinkSync('one', join(it.here, 'link'))

    await it.cp('link', 'a:/srv/plain')
    await it.cp('-L', 'link', 'a:/srv/followed')

    expect(readlinkSync(join(it.daemon.guest, 'srv/plain'))).toBe('one')
    expect(it.guest('srv/followed')).toBe('one')
  })

  test.each([
    ['nothing on this host', ['gone', 'a:/srv'], 4, 'Cannot find "gone" on this host'],
    ['nothing in the vm', ['a:/gone', '.'], 4, 'Cannot find "/gone" in the vm'],
    ['a folder to a file', ['dir', 'a:/srv/file'], 5, 'it is a file, and a folder was to be copied'],
    ['a folder to a file of this host', ['a:/srv', 'one'], 5, 'it is a file, and a folder was to be copied'],
    ['to a missing folder', ['one', 'a:/gone/deep'], 4, 'there is no such folder in the vm'],
    ['a file to a missing folder with its slash', ['one', 'a:/srv/gone/'], 4, 'there is no such folder in the vm'],
    ['to a missing folder of this host', ['a:/srv/file', 'gone/deep'], 4, 'there is no such folder on this host'],
    ['from here to here', ['one', 'two'], 2, 'neither side is in a vm'],
    ['to a vm that is not there', ['one', 'zz:/'], 4, 'Cannot find vm "zz"'],
  ] as const)('refuses %s', async (_, argv, code, sentence) => {
    await using it = setUp()

    const said = await it.cp(...argv)

    expect(said.code).toBe(code)
    expect(said.err).toContain(sentence)
  })

  test('keeps what is outside out of reach of a guest that lies', async () => {
    const evil = Bun.spawnSync([
      'bash',
      '-c',
      'cd "$(mktemp -d)" && mkdir d && ln -s /tmp d/l && tar cf - d && rm d/l && mkdir d/l && touch d/l/aerie-escaped && tar cf - d | cat',
    ])
    await using daemon = new FakeDaemon((_, path) =>
      path.endsWith('/files')
        ? new Response(evil.stdout)
        : path.endsWith('/stat')
          ? Response.json({ exists: true, is_dir: true })
          : undefined,
    )
    daemon.add({ name: 'a' })
    const here = mkdtempSync(join(tmpdir(), 'aerie-cp-'))

    await aerie(['cp', 'a:/d', '.'], { socket: daemon.socket, cwd: here })

    expect(existsSync('/tmp/aerie-escaped')).toBe(false)
    rmSync(here, { recursive: true, force: true })
  })
})

describe('forward', () => {
  test('joins a port of this host with one of the vm, half-closes included', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    const heard: Buffer[] = []
    using guest = Bun.listen({
      hostname: '127.0.0.1',
      port: 0,
      allowHalfOpen: true,
      socket: {
        data(_, bytes) {
          heard.push(Buffer.from(bytes))
        },
        end(socket) {
          socket.write(`${Buffer.concat(heard).length} bytes`)
          socket.end()
        },
      },
    })
    const child = Bun.spawn([...PROGRAM, 'forward', 'a', `0:${guest.port}`], {
      env: envOf(daemon),
      stdout: 'pipe',
      stderr: 'inherit',
    })
    const first = await child.stdout.getReader().read()
    const port = Number(/127\.0\.0\.1:(\d+)/.exec(Buffer.from(first.value ?? []).toString())?.[1])

    const answer = await new Promise<string>((resolve, reject) => {
      let said = ''
      const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true }, () => {
        socket.end(noise(3 * 2 ** 20))
      })
      socket
        .on('data', (bytes: Buffer) => {
          said += bytes.toString()
        })
        .on('end', () => {
          resolve(said)
        })
        .on('error', reject)
    })
    child.kill('SIGINT')

    expect(answer).toBe(`${3 * 2 ** 20} bytes`)
    expect(await child.exited).toBe(130)
  })

  test('takes its Unix socket away with it', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    const path = join(daemon.folder, 'f.sock')
    const child = Bun.spawn([...PROGRAM, 'forward', 'a', `${path}:80`], {
      env: envOf(daemon),
      stdout: 'pipe',
      stderr: 'inherit',
    })
    await child.stdout.getReader().read()
    expect(existsSync(path)).toBe(true)

    child.kill('SIGTERM')

    expect(await child.exited).toBe(143)
    expect(existsSync(path)).toBe(false)
  })
})

describe('what is printed', () => {
  const printing = [
    'ls',
    'ps',
    'vm list',
    'image ls',
    'kernel ls',
    'token ls',
    'inspect a',
    'stats a',
    'vm ls a /',
    'vm stat a /',
    'system info',
    'system summary',
    'version',
    'start a',
    'wait a',
    'create base c',
    'rm -f a',
  ]
  test.each(printing)('%s: stdout is one JSON value with -o json, and YAML says the same', async (line) => {
    const argv = line.split(' ')
    const lists = ['/api/v1/images', '/api/v1/kernels', '/api/v1/tokens']
    const vm = /\/(start|wait)$/
    await using daemon = new FakeDaemon((_, path) =>
      lists.includes(path)
        ? Response.json([])
        : vm.test(path)
          ? Response.json({ ...daemon.find('a'), exit_code: 0 })
          : path.endsWith('/stats')
            ? Response.json({ name: 'a', cpu: {}, load: [], memory: {}, disks: [], host: {} })
            : path === '/api/v1/system/info'
              ? Response.json({ version: '1', features: [] })
              : path === '/api/v1/system/summary'
                ? Response.json({ capacity: { cpu: {}, memory_mb: {} }, by_status: {} })
                : undefined,
    )
    daemon.add({ name: 'a' })

    const json = await aerie([...argv, '-o', 'json'], { socket: daemon.socket })
    if (argv[0] === 'rm') daemon.add({ name: 'a' })
    if (argv[0] === 'create') {
      daemon.vms.clear()
      daemon.add({ name: 'a' })
    }
    const yaml = await aerie([...argv, '-o', 'yaml'], daemon)

    expect(json.code).toBe(0)
    const value: unknown = JSON.parse(json.out)
    const same = (it: unknown): string =>
      JSON.stringify(it).replace(/"(uid|created_at|started_at|updated_at)":"[^"]*"/g, '')
    expect(same(Bun.YAML.parse(yaml.out))).toBe(same(value))
  })

  test('a fault is a problem on stderr with -o json, and stdout stays empty', async () => {
    await using daemon = new FakeDaemon()

    const said = await aerie(['inspect', 'gone', '-o', 'json'], daemon)

    expect([said.code, said.out]).toEqual([4, ''])
    expect(JSON.parse(said.err)).toMatchObject({
      code: 'vm_not_found',
      title: 'Cannot find vm "gone"',
      hint: 'List them with "aerie ls"',
    })
  })

  test('names only with -q and -o name', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    daemon.add({ name: 'b' })

    expect((await aerie(['ps', '-q'], daemon)).out).toBe('a\nb\n')
    expect((await aerie(['ls', '-o', 'name'], daemon)).out).toBe('a\nb\n')
  })

  test('one failure does not keep a verb from the other names', async () => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a' })
    daemon.add({ name: 'c' })

    const said = await aerie(['rm', '-f', 'a', 'b', 'c'], daemon)

    expect([said.code, said.out]).toEqual([4, 'a\nc\n'])
    expect(said.err).toContain('Cannot find vm "b"')
    expect(daemon.vms.size).toBe(0)
  })

  test('wait prints the exit code, and is 124 when the time is over', async () => {
    await using daemon = new FakeDaemon((request, path) =>
      !path.endsWith('/wait')
        ? undefined
        : new URL(request.url).searchParams.get('timeout_s') === '0.1'
          ? Response.json({ title: 'Time is over', code: 'wait_timeout' }, { status: 504 })
          : Response.json({ ...daemon.find('a'), exit_code: 3 }),
    )
    daemon.add({ name: 'a' })

    expect(await aerie(['wait', 'a'], daemon)).toMatchObject({ code: 0, out: '3\n' })
    expect(await aerie(['wait', '--timeout', '100ms', 'a'], daemon)).toMatchObject({ code: 124, out: '' })
  })

  test('logs: stderr of the workload is stderr, times and JSON on request', async () => {
    const lines = [
      { name: 'a', source: 'app', stream: 'stdout', line: 'one', timestamp: '2026-01-01T00:00:00.000Z' },
      { name: 'a', source: 'app', stream: 'stderr', line: 'two', timestamp: null },
    ]
    await using daemon = new FakeDaemon((_, path) =>
      path.endsWith('/logs')
        ? new Response(lines.map((line, at) => `id: ${at}\nevent: log\ndata: ${JSON.stringify(line)}\n\n`).join(''), {
            headers: { 'content-type': 'text/event-stream' },
          })
        : undefined,
    )
    daemon.add({ name: 'a' })

    expect(await aerie(['logs', 'a'], daemon)).toMatchObject({ code: 0, out: 'one\n', err: 'two\n' })
    expect((await aerie(['logs', '-t', 'a'], daemon)).out).toBe('2026-01-01T00:00:00.000Z one\n')
    expect(
      (await aerie(['logs', 'a', '-o', 'json'], daemon)).out
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as unknown),
    ).toEqual(lines)
  })

  test('api prints the answer as it is, and fails as the daemon does', async () => {
    await using daemon = new FakeDaemon((_, path) =>
      path === '/api/v1/raw' ? new Response('{"a":1}', { headers: { 'content-type': 'application/json' } }) : undefined,
    )

    expect(await aerie(['api', 'get', 'raw'], daemon)).toMatchObject({ code: 0, out: '{"a":1}\n' })
    expect((await aerie(['api', 'POST', '/api/v1/vms', '-d', '{"name":"x"}'], daemon)).code).toBe(0)
    expect((await aerie(['api', 'GET', '/nowhere'], daemon)).code).toBe(4)
  })
})
