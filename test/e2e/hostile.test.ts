import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import {
  clean,
  cli,
  createVm,
  daemonGone,
  haveBinary,
  machinesOf,
  newFolder,
  startDaemon,
  until,
  type Daemon,
} from './daemon.ts'

const at = (name: string) => ({ params: { name } })
const residentKib = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0)

/** Guests that do what guests must not: each ends in a state with a reason, and the daemon goes on as before. */
describe.skipIf(!haveBinary)('a guest that misbehaves', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon({
      flags: ['--boot-timeout-s', '110', '--log-max-mb', '1', '--cpu-oversubscription', '8'],
    })
  })
  afterAll(async () => {
    await clean(daemon)
  })

  const exec = (name: string, script: string) =>
    daemon.client.call('vm.exec', { ...at(name), body: { argv: ['sh', '-c', script] } })
  const ended = (name: string) =>
    daemon.client.call('vm.wait', { ...at(name), query: { for: 'stopped', timeout_s: 60 } })

  test("one that panics in boot leaves no row, and its console's last words are in the event", async () => {
    await expect(
      createVm(daemon, { name: 'panics', kernel_cmdline: 'init=/nonexistent rdinit=/nonexistent' }),
    ).rejects.toMatchObject({ code: 'vm_start_failed' })

    await expect(daemon.client.call('vm.get', at('panics'))).rejects.toMatchObject({ code: 'vm_not_found' })
    const events = await (
      await daemon.client.request('GET', '/api/v1/events?after=0&follow=false&type=VM_CREATE_FAILED')
    ).text()
    expect(events).toContain('Unable to mount root fs')
    expect(events).toContain('console:')
    expect(machinesOf(daemon.state)).toEqual([])
  }, 240_000)

  test('one that hangs in boot is given up after its time', async () => {
    const short = await startDaemon({ flags: ['--boot-timeout-s', '3'] })
    try {
      await expect(
        createVm(short, { name: 'hangs', kernel_cmdline: 'rdinit=/dev/null initcall_debug' }),
      ).rejects.toMatchObject({ code: 'vm_start_failed' })
      expect(machinesOf(short.state)).toEqual([])
    } finally {
      await clean(short)
    }
  }, 240_000)

  test('one that is deleted while it boots is gone at once', async () => {
    const creating = createVm(daemon, { name: 'brief' }).then(
      () => 'made',
      (error: { code: string }) => error.code,
    )
    await until(() => machinesOf(daemon.state).length > 0)

    await daemon.client.call('vm.delete', at('brief'))

    expect(await creating).not.toBe('made')
    expect(machinesOf(daemon.state)).toEqual([])
  }, 240_000)

  test('one that fills its disk, floods its console and eats its memory harms nobody else', async () => {
    await createVm(daemon, { name: 'bad', memory_mb: 192, disk_mb: 128, cmd: ['sleep', '100000'] })
    const before = residentKib(daemon.pid)

    // its disk
    expect((await exec('bad', 'dd if=/dev/zero of=/fill bs=1M 2>&1; rm /fill; echo done')).stdout).toContain(
      'No space left',
    )
    // its console
    const vm = await daemon.client.call('vm.get', at('bad'))
    const log = join(daemon.state, 'vms', vm.uid, 'console.log')
    const flood = (bytes: number) => exec('bad', `head -c ${bytes} /dev/zero | tr "\\0" x | fold -w 100 > /dev/ttyS0`)
    if (vm.hypervisor === 'talon') {
      // each byte is an exit, and one of a guest within a guest is dear; that its log is bounded is shown where talon's
      // own tests are
      await flood(50_000)
      await until(() => statSync(log).size > 50_000)
    } else {
      await flood(9_000_000) // more than is kept: the daemon looks and gives it back
      await until(() => statSync(log).size > 9_000_000)
      await until(() => statSync(log).blocks * 512 < 7_000_000)
    }
    // its memory
    const eaten = await exec('bad', 'tail /dev/zero; echo code $?')
    expect(eaten.stdout).toContain('code 137')

    expect((await exec('bad', 'echo alive')).stdout).toBe('alive\n')
    expect(residentKib(daemon.pid) - before).toBeLessThan(40_000)
    await daemon.client.call('vm.delete', at('bad'))
  }, 240_000)

  test('a workload that is killed for memory says so', async () => {
    await createVm(daemon, { name: 'oom', memory_mb: 160, cmd: ['tail', '/dev/zero'] })

    expect(await ended('oom')).toMatchObject({ status: 'stopped', exit_code: 137, exit_signal: 9 })
    expect((await daemon.client.call('vm.get', at('oom'))).exit_message).toContain('OOM')
    await daemon.client.call('vm.delete', at('oom'))
  }, 240_000)

  test("a guest's own reboot is a new machine, its power-off a stop, its panic a crash", async () => {
    await createVm(daemon, { name: 'moody', cmd: ['sleep', '100000'] })
    const first = await daemon.client.call('vm.get', at('moody'))

    await exec('moody', 'echo b > /proc/sysrq-trigger').catch(() => undefined)
    await until(async () => {
      const vm = await daemon.client.call('vm.get', at('moody'))
      return vm.status === 'running' && vm.pid !== first.pid
    })
    expect((await exec('moody', 'echo again')).stdout).toBe('again\n')

    await exec('moody', 'echo c > /proc/sysrq-trigger').catch(() => undefined)
    const crashed = await ended('moody')
    expect(crashed).toMatchObject({ status: 'crashed', pid: null })
    expect(crashed.status_message).toContain('panicked')

    expect(await daemon.client.call('vm.start', { ...at('moody'), body: {} })).toMatchObject({ status: 'running' })
    await exec('moody', 'echo o > /proc/sysrq-trigger').catch(() => undefined)
    expect(await ended('moody')).toMatchObject({ status: 'stopped' })
    await daemon.client.call('vm.delete', at('moody'))
  }, 240_000)

  test('a machine that is killed from outside is a crash with the reason', async () => {
    const vm = await createVm(daemon, { name: 'shot', cmd: ['sleep', '100000'] })

    process.kill(vm.pid ?? 0, 'SIGKILL')

    const crashed = await ended('shot')
    expect(crashed).toMatchObject({ status: 'crashed' })
    expect(crashed.status_message).toContain('killed')
    await until(() => machinesOf(daemon.state).length === 0) // its helpers
    await daemon.client.call('vm.delete', at('shot'))
  }, 240_000)

  test('a workload that ignores SIGTERM is killed after its grace, and one that heeds it ends with its own code', async () => {
    await createVm(daemon, {
      name: 'deaf',
      cmd: ['sh', '-c', 'trap "" TERM; echo deaf; while :; do sleep 1; done'],
      stop_timeout_s: 1,
    })
    await until(async () => (await cli(daemon, ['logs', 'deaf'])).stdout === 'deaf\n')
    expect(await daemon.client.call('vm.stop', { ...at('deaf'), body: {} })).toMatchObject({
      status: 'stopped',
      exit_code: 137,
    })
    await daemon.client.call('vm.delete', at('deaf'))

    await createVm(daemon, {
      name: 'polite',
      cmd: ['sh', '-c', 'trap "exit 42" TERM; echo polite; while :; do sleep 0.1; done'],
    })
    await until(async () => (await cli(daemon, ['logs', 'polite'])).stdout === 'polite\n')
    expect(await daemon.client.call('vm.stop', { ...at('polite'), body: {} })).toMatchObject({
      status: 'stopped',
      exit_code: 42,
    })
    await daemon.client.call('vm.delete', at('polite'))
  }, 240_000)

  test('six creates at once on real guests all run, each with a name, a CID and an identity of its own', async () => {
    const made = await Promise.all(
      Array.from({ length: 6 }, () => createVm(daemon, { memory_mb: 160, cmd: ['sleep', '100000'] })),
    )

    const ids = await Promise.all(
      made.map((vm) => exec(vm.name, 'cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1')),
    )
    expect(new Set(made.map((vm) => vm.name)).size).toBe(6)
    expect(new Set(made.map((vm) => vm.vsock_cid)).size).toBe(6)
    expect(new Set(ids.map((one) => one.stdout)).size).toBe(6)
    await Promise.all(made.map((vm) => daemon.client.call('vm.delete', at(vm.name))))
    expect(machinesOf(daemon.state)).toEqual([])
  }, 240_000)
})

describe.skipIf(!haveBinary)('a fresh home', () => {
  test('two runs at once share one daemon, which goes when nobody needs it', async () => {
    const home = newFolder()
    const env = {
      HOME: home,
      XDG_STATE_HOME: join(home, 's'),
      XDG_RUNTIME_DIR: join(home, 'r'),
      AERIE_HOST: 'user',
      PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
    }

    mkdirSync(env.XDG_RUNTIME_DIR, { mode: 0o700 })
    const [one, two] = await Promise.all([
      cli(undefined, ['run', '--memory', '160m', 'base', '--', 'echo', 'one'], { env }),
      cli(undefined, ['run', '--memory', '160m', 'base', '--', 'echo', 'two'], { env }),
    ])

    expect(one).toMatchObject({ code: 0, stdout: 'one\n' })
    expect(two).toMatchObject({ code: 0, stdout: 'two\n' })
    const state = join(home, 's/aerie')
    await until(() => machinesOf(state).length === 0)
    await daemonGone(state)
    for (const path of [join(home, 'r/aerie/aerie.sock'), join(state, 'run/aerie.sock')])
      expect(existsSync(path)).toBe(false)
    rmSync(home, { recursive: true })
  }, 240_000)

  test("a logout takes a user's sockets away, and the vms are reached all the same", async () => {
    const home = newFolder()
    const runtime = join(home, 'r')
    const env = { HOME: home, XDG_RUNTIME_DIR: runtime, AERIE_HOST: 'user', PATH: '/usr/sbin:/usr/bin:/sbin:/bin' }
    const state = join(home, '.local/state/aerie')
    try {
      mkdirSync(runtime, { mode: 0o700 })
      const ran = await cli(undefined, ['run', '-d', '--name', 'k', '--memory', '160m', 'base', '--', 'sleep', '999'], {
        env,
      })
      expect(ran).toMatchObject({ code: 0, stdout: 'k\n' })
      expect(existsSync(join(runtime, 'aerie/aerie.sock'))).toBe(true)

      rmSync(runtime, { recursive: true })

      for (const then of [env, { ...env, XDG_RUNTIME_DIR: '' }]) {
        expect((await cli(undefined, ['ps', '-q'], { env: then })).stdout).toBe('k\n')
        expect(await cli(undefined, ['exec', 'k', '--', 'echo', 'here'], { env: then })).toMatchObject({
          code: 0,
          stdout: 'here\n',
        })
      }
      expect((await cli(undefined, ['rm', '-f', 'k'], { env })).code).toBe(0)
      await until(() => machinesOf(state).length === 0)
      await daemonGone(state)
    } finally {
      rmSync(home, { recursive: true, force: true })
    }
  }, 240_000)
})
