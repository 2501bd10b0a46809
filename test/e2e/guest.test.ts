import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  existsSync,
  chmodSync,
  readlinkSync,
} from 'node:fs'
import { join } from 'node:path'
import { saved, sparseFile } from '../image/build.ts'
import { AERIE, clean, cli, createVm, haveBinary, machinesOf, startDaemon, until, type Daemon } from './daemon.ts'

const at = (name: string) => ({ params: { name } })

/**
 * Real guests under TCG, one daemon, the compiled file. Boots are dear here: each test takes what it can from one
 * guest.
 */
describe.skipIf(!haveBinary)('a real guest', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon()
    await createVm(daemon, {
      name: 'g',
      cmd: ['sh', '-c', 'echo up; echo oops >&2; httpd -p 8080 -h /www; exec sleep 100000'],
      port: 8080,
      env: { SECRET: 'x', GREETING: 'hello' },
      shm_size_mb: 96,
      disk_io_bps: '100MB/s',
    })
  }, 240_000)
  afterAll(async () => {
    await clean(daemon)
  })

  const exec = (args: readonly string[], options: Parameters<typeof cli>[2] = {}) =>
    cli(daemon, ['exec', ...args], options)

  test('exec passes output, exit code, signals and stdin apart and whole', async () => {
    expect(await exec(['g', '--', 'sh', '-c', 'echo out; echo err >&2; exit 7'])).toEqual({
      code: 7,
      stdout: 'out\n',
      stderr: 'err\n',
    })
    expect((await exec(['g', '--', 'sh', '-c', 'kill -TERM $$'])).code).toBe(143)
    expect((await exec(['g', '--', 'no-such-program'])).code).toBe(127)
    expect((await exec(['g', '--', '/etc/passwd'])).code).toBe(126)
    expect((await exec(['--timeout', '1', 'g', '--', 'sleep', '60'])).code).toBe(124)
    expect((await exec(['-i', 'g', '--', 'wc', '-c'], { stdin: 'x'.repeat(1_000_000) })).stdout.trim()).toBe('1000000')
  }, 240_000)

  test('exec takes as many arguments as Linux does', async () => {
    for (const count of [2000, 100_000]) {
      const words = Array.from({ length: count }, (_, at) => String(at))
      expect(await exec(['g', '--', 'sh', '-c', 'echo $# $1', ...words])).toMatchObject({
        code: 0,
        stdout: `${count - 1} 1\n`,
      })
    }
  }, 240_000)

  test('has the /dev/shm, the speed of its disk and the walls that its record shows', async () => {
    const vm = await daemon.client.call('vm.get', { params: { name: 'g' } })
    const machine = readFileSync(`/proc/${vm.pid}/cmdline`, 'utf8')

    expect(vm).toMatchObject({ shm_size_mb: 96, disk_io_bps: '100MB/s' })
    expect((await exec(['g', '--', 'sh', '-c', "df -k /dev/shm | awk 'NR == 2 { print $2 }'"])).stdout).toBe(
      `${96 * 1024}\n`,
    )
    const { checks } = await daemon.client.call('system.doctor', {})
    const walls = checks.find(({ name }) => name === 'qemu-walls')
    expect(vm.walls).toContain('seccomp')
    if (vm.hypervisor === 'qemu')
      expect([vm.walls?.includes('namespaces'), vm.walls?.includes('empty-root')]).toEqual(
        walls?.status === 'ok' ? [true, true] : [false, false],
      )
    if (vm.hypervisor === 'qemu') expect(machine).toContain(`"bps-total":${100 * 2 ** 20},`)
  }, 240_000)

  test('exec is binary safe both ways', async () => {
    const bytes = Buffer.alloc(300_000)
    for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 7919) & 255
    const child = Bun.spawn([AERIE, 'exec', '-i', 'g', '--', 'cat'], {
      stdin: new Blob([bytes]),
      stdout: 'pipe',
      stderr: 'pipe',
      cwd: '/',
      env: { AERIE_HOST: `unix://${daemon.socket}` },
    })

    const back = Buffer.from(await new Response(child.stdout).arrayBuffer())

    expect(await child.exited).toBe(0)
    expect(back.equals(bytes)).toBe(true)
  }, 240_000)

  test('exec runs with the environment, folder and user that were asked for', async () => {
    const said = await exec([
      '-e',
      'A=1',
      '-w',
      '/tmp',
      '-u',
      'nobody',
      'g',
      '--',
      'sh',
      '-c',
      'echo $A $(pwd) $(id -u)',
    ])

    expect(said).toEqual({ code: 0, stdout: '1 /tmp 65534\n', stderr: '' })
    expect((await exec(['-u', 'nobody-here', 'g', '--', 'id'])).code).not.toBe(0)
  }, 240_000)

  test('the guest is what its configuration says', async () => {
    const said = (
      await exec([
        'g',
        '--',
        'sh',
        '-c',
        'hostname; cat /etc/machine-id; df -k / | tail -1; tr "\\0" "\\n" < /proc/1/cmdline; cat /proc/cmdline; ls /modules /init 2>&1',
      ])
    ).stdout
    const vm = await daemon.client.call('vm.get', at('g'))

    expect(said.split('\n')[0]).toBe('g')
    expect(said).toMatch(/\n[0-9a-f]{32}\n/)
    expect(Number(/overlay +(\d+)/.exec(said)?.[1])).toBeGreaterThan(9_000_000) // the disk has grown to 10 GiB
    expect(said).not.toContain('SECRET')
    expect(said).toContain('No such file')
    expect(vm.env_names.sort()).toEqual(['GREETING', 'SECRET'])
    expect(JSON.stringify(vm)).not.toContain('hello')
  }, 240_000)

  test('logs show what the workload said, by stream', async () => {
    await until(async () => (await cli(daemon, ['logs', 'g'])).stderr.includes('oops'))

    const lines = (await cli(daemon, ['logs', '-o', 'json', 'g'])).stdout

    expect(lines).toContain('"stdout"')
    expect(lines).toContain('"stderr"')
    const last = await cli(daemon, ['logs', '--tail', '1', 'g'])
    expect(`${last.stdout}${last.stderr}`.split('\n').length).toBe(2)
  }, 240_000)

  test('files go in and come out with modes, links and content', async () => {
    const folder = mkdtempSync('/tmp/aerie-cp-')
    try {
      mkdirSync(join(folder, 'tree/deep'), { recursive: true })
      writeFileSync(join(folder, 'tree/run.sh'), '#!/bin/sh\necho ran\n')
      chmodSync(join(folder, 'tree/run.sh'), 0o755)
      writeFileSync(join(folder, 'tree/deep/big'), Buffer.alloc(3_000_001, 7))
      symlinkSync('../run.sh', join(folder, 'tree/deep/link'))

      expect(await cli(daemon, ['cp', join(folder, 'tree'), 'g:/opt'])).toMatchObject({ code: 0 })
      expect((await exec(['g', '--', 'sh', '-c', 'ls /opt/; /opt/tree/run.sh || /opt/run.sh'])).stdout).toContain('ran')
      expect(await cli(daemon, ['cp', 'g:/opt', join(folder, 'back')])).toMatchObject({ code: 0 })

      const root = existsSync(join(folder, 'back/tree')) ? join(folder, 'back/tree') : join(folder, 'back')
      expect(readFileSync(join(root, 'deep/big')).equals(Buffer.alloc(3_000_001, 7))).toBe(true)
      expect(statSync(join(root, 'run.sh')).mode & 0o777).toBe(0o755)
      expect(readlinkSync(join(root, 'deep/link'))).toBe('../run.sh')
      expect((await cli(daemon, ['cp', 'g:/no/such', folder])).code).toBe(4)
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  }, 240_000)

  test('what goes in costs the agent no memory that it has not had before', async () => {
    const faults = async () => Number((await exec(['g', '--', 'cut', '-d', ' ', '-f', '10', '/proc/1/stat'])).stdout) // minflt, proc_pid_stat(5)
    const tar = await new Bun.Archive({ many: new Uint8Array(16 * 2 ** 20) }).blob()
    const before = await faults()

    expect(
      await daemon.client.upload('vm.copy.in', { ...at('g'), query: { path: '/tmp' } }, tar.stream()),
    ).toMatchObject({ bytes: 16 * 2 ** 20 })

    expect((await faults()) - before).toBeLessThan(1024) // a quarter of the pages that came; new memory for each read would be twice of them all
    await exec(['g', '--', 'rm', '/tmp/many'])
  }, 60_000)

  test('stat, list and stats answer from inside', async () => {
    expect(await daemon.client.call('vm.stat', { ...at('g'), query: { path: '/etc/passwd' } })).toMatchObject({
      exists: true,
      is_file: true,
      uid: 0,
    })
    expect(await daemon.client.call('vm.stat', { ...at('g'), query: { path: '/nowhere' } })).toMatchObject({
      exists: false,
    })
    expect(
      (await daemon.client.call('vm.files', { ...at('g'), query: { path: '/' } })).entries.map((one) => one.name),
    ).toContain('etc')
    const stats = await daemon.client.call('vm.stats', at('g'))
    expect(stats.memory.total).toBeGreaterThan(100 * 2 ** 20)
    expect(stats.host.memory_bytes).toBeGreaterThan(0)
  }, 240_000)

  test("the proxy shows the workload's page, without our secrets and in a sandbox", async () => {
    const answer = await daemon.client.request('GET', '/api/v1/vms/g/agent/')

    expect(await answer.text()).toContain('microVM')
    expect(answer.headers.get('content-security-policy')).toContain('sandbox')
    expect(await (await daemon.client.request('GET', '/api/v1/vms/g/agent/healthz')).json()).toMatchObject({
      status: 'ok',
    })
    expect((await daemon.client.request('GET', '/api/v1/vms/g/agent/nothing')).status).toBe(404)
  }, 240_000)

  test('an image of another tool runs and stops as it says, with holes in its files', async () => {
    const bin = Bun.spawn([AERIE, 'cp', 'g:/bin', '-'], {
      stdout: 'pipe',
      cwd: '/',
      env: { AERIE_HOST: `unix://${daemon.socket}` },
    })
    const programs = Buffer.from(await new Response(bin.stdout).arrayBuffer())
    // Neither the layer nor the archive has the two empty blocks at its end.
    const size = 100 * 2 ** 30
    const lastlog = sparseFile('var/log/lastlog', size, [0, 1, size - 1, 1], 'ab')
    const layer = Buffer.concat([programs.subarray(0, -1024), lastlog])
    const script = 'trap "echo got 37; exit" 37; head -c 1 $0; tail -c 1 $0; echo; while :; do sleep 1; done'
    const archive = saved(
      { StopSignal: 'SIGRTMIN+3', Env: ['PATH=/bin'], Entrypoint: ['sh', '-c', script, '/var/log/lastlog'] },
      layer,
    )
    const query = { name: 'other-tool' }
    await daemon.client.upload('image.import', { query }, new Blob([new Uint8Array(archive)]).stream())
    await createVm(daemon, { name: 'other', image: 'other-tool', memory_mb: 256 })
    const logs = async () => (await cli(daemon, ['logs', 'other'])).stdout
    await until(async () => (await logs()).includes('ab'))

    expect((await cli(daemon, ['stop', 'other'])).code).toBe(0)

    expect(await logs()).toBe('ab\ngot 37\n')
    expect((await cli(daemon, ['rm', 'other'])).code).toBe(0)
  }, 240_000)

  test('a guest outlives its daemon, and the next one speaks to it', async () => {
    const before = await daemon.client.call('vm.get', at('g'))
    await daemon.crash()
    daemon = await startDaemon({ folder: daemon.folder })

    expect(await daemon.client.call('vm.get', at('g'))).toMatchObject({ status: 'running', pid: before.pid ?? 0 })
    expect((await exec(['g', '--', 'echo', 'still here'])).stdout).toBe('still here\n')
    expect((await cli(daemon, ['stop', 'g'])).code).toBe(0)
    expect(await daemon.client.call('vm.get', at('g'))).toMatchObject({ status: 'stopped', pid: null })
    expect(machinesOf(daemon.state)).toEqual([])
  }, 240_000)

  test('a stopped vm starts again with its disk', async () => {
    expect((await cli(daemon, ['start', 'g'])).code).toBe(0)
    expect((await exec(['g', '--', 'ls', '/opt'])).code).toBe(0)
    expect((await cli(daemon, ['rm', 'g'])).code).toBe(5) // it runs
    expect((await cli(daemon, ['rm', '-f', 'g'])).code).toBe(0)
    expect(machinesOf(daemon.state)).toEqual([])
  }, 240_000)
})

describe.skipIf(!haveBinary)('aerie run', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon()
  })
  afterAll(async () => {
    await clean(daemon)
  })

  test('prints what the command prints, exits with its code and leaves nothing', async () => {
    expect(await cli(daemon, ['run', 'base', '--', 'sh', '-c', 'echo hi; exit 7'])).toMatchObject({
      code: 7,
      stdout: 'hi\n',
    })
    await until(async () => (await daemon.client.call('vm.list', {})).length === 0)
    expect(machinesOf(daemon.state)).toEqual([])
  }, 240_000)

  test('takes a tar on its stdin and gives one back', async () => {
    const folder = mkdtempSync('/tmp/aerie-tar-')
    writeFileSync(join(folder, 'file'), 'content\n')
    const tar = Buffer.from(await new Response(Bun.spawn(['tar', '-C', folder, '-c', '.']).stdout).arrayBuffer())
    rmSync(folder, { recursive: true })

    const listed = await cli(daemon, ['run', '-i', 'base', '--', 'tar', 't'], {
      stdin: new Blob([tar]) as unknown as string,
    })

    expect(listed).toMatchObject({ code: 0 })
    expect(listed.stdout).toContain('./file')
  }, 240_000)

  test('with a name has stopped when it answers, reads nothing of stdin, and takes thousands of arguments', async () => {
    const words = Array.from({ length: 2000 }, (_, at) => String(at))
    const ran = await cli(daemon, ['run', '--name', 'once', 'base', '--', 'sh', '-c', 'cat; echo $#', ...words], {
      stdin: 'for somebody else',
    })

    expect(ran).toMatchObject({ code: 0, stdout: '1999\n' })
    expect(await cli(daemon, ['rm', 'once'])).toMatchObject({ code: 0, stdout: 'once\n', stderr: '' })
  }, 240_000)

  test('a fault of ours is 125, and says what to do', async () => {
    const ran = await cli(daemon, ['run', 'no-such-image', '--', 'true'])

    expect(ran.code).toBe(125)
    expect(ran.stderr).toContain('Cannot find image "no-such-image"')
    expect(ran.stderr).toContain('hint:')
  }, 240_000)
})
