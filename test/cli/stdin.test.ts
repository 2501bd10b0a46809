import { describe, expect, test } from 'bun:test'
import { FakeDaemon } from '../client/daemon.ts'
import { envOf, PROGRAM, Typist } from './aerie.ts'

const A = PROGRAM.join(' ')

/** Runs a script of bash beside a vm `a`. */
const script = async (text: string, daemon: FakeDaemon, terminal = false) => {
  if (!daemon.find('a')) daemon.add({ name: 'a' })
  let screen = ''
  const child = Bun.spawn(['bash', ...(terminal ? ['--norc', '--noprofile', '-ic'] : ['-c']), text], {
    env: { ...envOf(daemon), PS1: '', TERM: 'dumb' },
    cwd: '/',
    ...(terminal
      ? {
          terminal: {
            data: (_: unknown, bytes: Uint8Array) => {
              screen += Buffer.from(bytes).toString()
            },
          },
        }
      : { stdin: 'ignore' as const, stdout: 'pipe' as const, stderr: 'pipe' as const }),
  })
  const streams = terminal
    ? ['', '']
    : await Promise.all([
        new Response(child.stdout as ReadableStream).text(),
        new Response(child.stderr as ReadableStream).text(),
      ])
  return { code: await child.exited, out: streams[0], err: streams[1], screen }
}

describe('without -i nothing of stdin is read', () => {
  test.each([
    [
      'a loop over lines runs for each',
      `printf 'a\\nb\\nc\\n' | while read x; do ${A} exec a -- echo $x; done`,
      'a\nb\nc\n',
    ],
    ['a script on stdin goes on', `printf 'echo 1\\n${A} exec a -- true\\necho 2\\n' | bash`, '1\n2\n'],
    ['run leaves it to the next command', `printf 'left\\n' | { ${A} run base -- true; cat; }`, 'left\n'],
    ['exec -t too', `printf 'left\\n' | { ${A} exec -t a -- true; cat; }`, 'left\n'],
    ['the guest reads its end', `echo never | ${A} exec a -- cat; echo $?`, '0\n'],
    ['so it does in a run', `echo never | ${A} run base -- cat; echo $?`, '0\n'],
    [
      'with -i a file is read to its end, whatever its size is said to be',
      `${A} exec -i a -- sh -c 'cat | head -c 9' </proc/cpuinfo`,
      'processor',
    ],
    [
      'with -i a file is read from where the last reader left it',
      `{ read x; ${A} exec -i a -- cat; } <<<$'one\ntwo\nthree'`,
      'two\nthree\n',
    ],
    ['with -i it reads what was said', `echo said | ${A} exec -i a -- cat`, 'said\n'],
    ['and with -i a run does', `echo said | ${A} run -i base -- cat`, 'said\n'],
  ])('%s', async (_, text, out) => {
    await using daemon = new FakeDaemon()

    expect(await script(text, daemon)).toMatchObject({ out, code: 0 })
  })
})

test('an attach leaves stdin to others too, where the workload has no terminal', async () => {
  await using daemon = new FakeDaemon()
  daemon.add({ name: 'a', cmd: ['sh', '-c', 'cat; echo end'] })

  const left = await script(`printf 'a\\nb\\n' | while read x; do ${A} attach a; done`, daemon)
  const sent = await script(`echo said | ${A} attach -i a`, daemon)

  expect([left.out, sent.out]).toEqual(['end\nend\n', 'said\nend\n'])
})

describe('a stdin that cannot be read', () => {
  test.each([
    ['a folder', 'exec a -- echo ok </tmp', 'ok\n', ''],
    ['a folder, sent', 'exec -i a -- sh -c "cat; echo ok" </tmp', 'ok\n', 'Cannot read stdin: it is a folder'],
    [
      'a failing file, sent',
      'exec -i a -- sh -c "cat; echo ok" </proc/$$/mem',
      'ok\n',
      'Cannot read stdin: the device',
    ],
    [
      'a folder, sent to a run',
      'run -i base -- sh -c "cat; echo ok" </tmp',
      'ok\n',
      'Cannot read stdin: it is a folder',
    ],
    ['none at all', 'exec a -- echo ok <&-', 'ok\n', ''],
  ])('is the end of input of a command: %s', async (_, line, out, err) => {
    await using daemon = new FakeDaemon()

    const said = await script(`${A} ${line}; exit $?`, daemon)

    expect([said.code, said.out]).toEqual([0, out])
    expect(said.err).toContain(err)
    expect(said.err).not.toContain('defect')
  })

  test.each(['cp - a:/ </tmp', 'api POST vms -d - </tmp', 'image import x - </tmp', 'image import x - </proc/$$/mem'])(
    'is the fault of whoever gave it to %s',
    async (line) => {
      await using daemon = new FakeDaemon()

      const said = await script(`${A} ${line}; exit $?`, daemon)

      expect([said.code, said.out]).toEqual([2, ''])
      expect(said.err).toStartWith('aerie: Cannot read stdin: ')
    },
  )
})

describe('a job in the background of a shell', () => {
  test.each([
    ['exec', 'exec a -- sh -c "sleep 0.3; echo said"'],
    ['exec -T', 'exec -T a -- sh -c "sleep 0.3; echo said"'],
    ['exec -it', 'exec -it a -- sh -c "sleep 0.3; echo said"'],
    ['run', 'run base -- sh -c "sleep 0.3; echo said"'],
  ])('runs on and is not stopped: %s', async (_, line) => {
    await using daemon = new FakeDaemon()

    const { screen } = await script(`${A} ${line} & wait %1; echo code $?; jobs -l; echo over`, daemon, true)

    expect(screen).toContain('said')
    expect(screen).toContain('code 0')
    expect(screen).toContain('over')
    expect(screen).not.toContain('Stopped')
  })

  test('takes the terminal when it is brought to the foreground', async () => {
    await using daemon = new FakeDaemon()

    const { screen } = await script(
      `${A} exec -it a -- sh -c 'stty size >/dev/null; echo first; sleep 0.5; echo second' & sleep 0.2; fg >/dev/null; echo code $?; stty -a | grep -o -- '-\\?icanon'`,
      daemon,
      true,
    )

    expect(screen).toMatch(/second[\s\S]*code 0\s+icanon/)
  })
})

describe('whoever waits for a guest that does not answer', () => {
  const started = (argv: readonly string[], daemon: FakeDaemon) => {
    if (!daemon.find('a')) daemon.add({ name: 'a' })
    const child = Bun.spawn([...PROGRAM, ...argv], {
      env: envOf(daemon),
      stdin: 'ignore',
      stdout: 'pipe',
      stderr: 'pipe',
    })
    return child
  }

  test.each(['SIGTERM', 'SIGINT'] as const)('a looker ends at %s, and the workload hears nothing', async (signal) => {
    await using daemon = new FakeDaemon()
    daemon.add({ name: 'a', cmd: ['sh', '-c', 'echo ready; sleep 60'] })
    const child = started(['attach', '--no-stdin', 'a'], daemon)
    await child.stdout.getReader().read()

    child.kill(signal)

    expect(await child.exited).toBe(signal === 'SIGINT' ? 130 : 143)
    expect(daemon.signals).toEqual([])
  })

  test('an exec ends at its own --timeout, where the guest does not end it', async () => {
    await using daemon = new FakeDaemon()

    const child = started(['exec', '--timeout', '100ms', 'a', '--', 'sh', '-c', 'trap "" TERM; sleep 60'], daemon)

    expect(await child.exited).toBe(124)
    expect(await new Response(child.stderr).text()).toContain('did not end the command after 0.1 s')
  })

  test('an exec that never begins ends at its --timeout too', async () => {
    await using daemon = new FakeDaemon((_, path) =>
      path.endsWith('/exec') ? new Promise<Response>(() => undefined) : undefined,
    )

    const child = started(['exec', '--timeout', '100ms', 'a', '--', 'true'], daemon)

    expect(await child.exited).toBe(124)
  })

  test.each([
    ['is never reached', (path: string) => path.endsWith('/attach')],
    ['does not stop', (path: string) => path.endsWith('/stop')],
  ])('a run ends at its --timeout where the guest %s', async (_, hangs) => {
    await using daemon = new FakeDaemon((__, path) =>
      hangs(path) ? new Promise<Response>(() => undefined) : undefined,
    )
    const command = ['sh', '-c', 'trap "" TERM; sleep 60']

    const child = started(['run', '--name', 'kept', '--timeout', '200ms', 'base', '--', ...command], daemon)

    expect(await child.exited).toBe(124)
    expect(await new Response(child.stderr).text()).toContain('kept was ended after 0.2 s')
  })

  test('an interrupted boot is given up at the second ^C', async () => {
    const deleting = Promise.withResolvers<void>()
    const booting = Promise.withResolvers<void>()
    await using daemon = new FakeDaemon((request, path) => {
      if (request.method === 'DELETE') deleting.resolve()
      else if (path === '/api/v1/vms') booting.resolve()
      else return undefined
      return new Promise<Response>(() => undefined)
    })
    const child = started(['run', 'base', '--', 'true'], daemon)

    await booting.promise
    child.kill('SIGINT')
    await deleting.promise
    child.kill('SIGINT')

    expect(await child.exited).toBe(130)
  })

  test('on a terminal ^C is the guest, and the second one leaves where the guest shows no life', async () => {
    const asked = Promise.withResolvers<void>()
    await using daemon = new FakeDaemon((_, path) => {
      if (!path.endsWith('/stat')) return undefined
      asked.resolve()
      return Response.json({ title: 'no answer', code: 'agent_unavailable' }, { status: 503 })
    })
    daemon.add({ name: 'a' })
    using person = new Typist(
      ['exec', 'a', '--', 'sh', '-c', 'trap "" INT; stty -echo; echo ready; while :; do sleep 0.05; done'],
      { socket: daemon.socket },
    )
    await person.sees('ready')

    person.type('\x03')
    await asked.promise
    while ((await Promise.race([person.exited, Bun.sleep(100).then(() => -1)])) === -1) person.type('\x03')

    expect(await person.exited).toBe(130)
    expect(daemon.signals).toEqual([])
  })
})

test('a run with a name, and an attach, answer when the vm has stopped', async () => {
  const waited: string[] = []
  await using daemon = new FakeDaemon((_, path) => {
    if (!path.endsWith('/wait')) return undefined
    waited.push(path)
    return Response.json({})
  })

  daemon.add({ name: 'b', cmd: ['true'] })
  await script(`${A} run --name kept base -- true; ${A} run base -- true; ${A} attach b`, daemon)

  expect(waited).toHaveLength(2)
})

test('a run says on a terminal what it does when that takes longer than a second, and nothing elsewhere', async () => {
  const seen = Promise.withResolvers<void>()
  await using daemon = new FakeDaemon(async (request, path) => {
    if (path === '/api/v1/vms' && request.method === 'POST') await seen.promise
    return undefined as never
  })
  using person = new Typist(['run', 'base', '--', 'echo', 'hi'], { socket: daemon.socket })

  await person.sees(/aerie: booting a vm from "base" … [1-9]\d* s/)
  seen.resolve()
  await person.exited

  expect(person.seen).toMatch(/\x1b\[Khi\r\n$/)
})

test.each([
  'image import x <(printf said)',
  'image import x /dev/stdin < <(printf said)',
  'image import x /proc/self/fd/9 9< <(printf said)',
  'kernel import <(printf said)',
])('the shell may make the file of: %s', async (words) => {
  const got: string[] = []
  await using daemon = new FakeDaemon((request, path) =>
    path.endsWith('/import')
      ? request.text().then((text) => {
          got.push(text)
          return Response.json({ name: 'x', digest: 'sha256:0' }, { status: 201 })
        })
      : undefined,
  )

  const said = await script(`${A} ${words}`, daemon)

  expect([said.code, said.err?.includes('Cannot'), got]).toEqual([0, false, ['said']])
})
