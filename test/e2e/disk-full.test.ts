import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { clean, cli, createVm, haveBinary, newFolder, startDaemon, until, type Daemon } from './daemon.ts'

const run = (...argv: string[]): boolean => Bun.spawnSync(argv, { stderr: 'ignore', stdout: 'ignore' }).exitCode === 0
const folder = newFolder()
const state = join(folder, 'state')
mkdirSync(state)
const canMount = haveBinary && run('mount', '-t', 'tmpfs', '-o', 'size=160m,mode=0700', 'tmpfs', state)
if (!canMount) rmSync(folder, { recursive: true })

/**
 * A real guest that fills the disk of its host, which holds everything that the daemon has. QEMU halts it; talon's
 * guests get the error.
 */
describe.skipIf(!canMount)('a guest that fills the disk of its host', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon({ folder, flags: ['--hypervisor', 'qemu'] })
    await createVm(daemon, { name: 'f', disk_mb: 2000, cmd: ['sleep', '100000'] })
  }, 240_000)
  afterAll(async () => {
    await clean({ ...daemon, folder: join(folder, 'run') })
    run('umount', '-l', state)
    rmSync(folder, { recursive: true, force: true })
  })

  const status = async () => await daemon.client.call('vm.get', { params: { name: 'f' } })
  const fill = (): void => {
    for (let size = 2 ** 20; size >= 4096; size /= 2) {
      try {
        for (;;) writeFileSync(join(state, 'filler'), Buffer.alloc(size, 1), { flag: 'a' })
      } catch {
        // full, for pieces of this size
      }
    }
  }

  test('stands still and says so, to whoever asks and to whoever waits, and goes on when there is room', async () => {
    const waits = daemon.client
      .call('vm.exec', { params: { name: 'f' }, body: { argv: ['sleep', '1000'], timeout_ms: 15_000 } })
      .catch((error: unknown) => error)
    const writes = cli(daemon, [
      'exec',
      'f',
      '--',
      'dd',
      'if=/dev/zero',
      'of=/root/x',
      'bs=1M',
      'count=300',
      'conv=fsync',
    ])
    await until(async () => (await status()).status === 'paused')

    expect((await status()).status_message).toContain('the disk of the host is full')
    expect((await cli(daemon, ['events', '--no-follow'])).stdout).toContain('the disk of the host is full')
    const asked = await cli(daemon, ['exec', 'f', '--', 'true'])
    expect([asked.code, asked.stderr]).toEqual([125, expect.stringContaining('paused (the disk of the host is full')])
    expect((await cli(daemon, ['standby', 'f'])).code).toBe(6)
    expect((await status()).status).toBe('paused')
    expect(await waits).toMatchObject({
      code: 'agent_unavailable',
      message: expect.stringContaining('the command had to end by now') as string,
    })

    run('mount', '-o', 'remount,size=600m', state)

    await until(async () => (await status()).status === 'running')
    expect((await cli(daemon, ['exec', 'f', '--', 'true'])).code).toBe(0)
    expect((await writes).code).toBe(0)
    expect((await cli(daemon, ['exec', 'f', '--', 'stat', '-c', '%s', '/root/x'])).stdout).toBe(`${300 * 2 ** 20}\n`)
    expect((await status()).status_message).toBe(null)
  }, 240_000)

  test('can be stopped and deleted then too', async () => {
    fill()

    expect((await cli(daemon, ['stop', '--time', '0', 'f'])).code).toBe(0)
    fill()
    expect((await cli(daemon, ['rm', '-f', 'f'])).code).toBe(0)
    expect((await cli(daemon, ['ps', '-a', '-q'])).stdout).toBe('')
  }, 120_000)
})
