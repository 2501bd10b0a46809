import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, readdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Vm } from '../../src/contract/vm.ts'
import {
  clean,
  createVm,
  haveBinary,
  machinesOf,
  newFolder,
  seedFake,
  startDaemon,
  tinyTar,
  type Daemon,
} from '../e2e/daemon.ts'

/** A file system of its own, so small that it is full at once. */
const mount = (at: string, size: string): boolean => {
  mkdirSync(at, { recursive: true })
  return (
    Bun.spawnSync(['mount', '-t', 'tmpfs', '-o', `size=${size},mode=0700`, 'tmpfs', at], {
      stdio: ['ignore', 'ignore', 'ignore'],
    }).exitCode === 0
  )
}
const unmount = (at: string): void => {
  Bun.spawnSync(['umount', '-l', at], { stdio: ['ignore', 'ignore', 'ignore'] })
}

const probe = newFolder()
const canMount = mount(join(probe, 'm'), '64k')
unmount(join(probe, 'm'))
rmSync(probe, { recursive: true })

describe.skipIf(!haveBinary || !canMount)(`a full disk${canMount ? '' : ' (this user may not mount a tmpfs)'}`, () => {
  let daemon: Daemon
  let folder: string
  let vms: string

  beforeAll(async () => {
    folder = newFolder()
    vms = join(folder, 'state/vms')
    mount(vms, '16k')
    daemon = await startDaemon({ fake: true, folder })
    await seedFake(daemon)
  }, 20_000)
  afterAll(async () => {
    await daemon.crash()
    unmount(vms)
    await clean(daemon)
  })

  test('refuses a vm with the reason and what to do, and leaves nothing of it', async () => {
    await expect(createVm(daemon, { name: 'big', cmd: ['sleep', '9'] })).rejects.toMatchObject({
      code: 'disk_exhausted',
      kind: 'exhausted',
      hint: expect.stringContaining('Free some space') as string,
    })

    expect(await daemon.client.call('vm.list', {})).toEqual([])
    expect(readdirSync(vms)).toEqual([])
    expect(machinesOf(daemon.state)).toEqual([])
    expect((await daemon.client.call('system.summary', {})).capacity.cpu.allocated).toBe(0)
  })

  test('is told in the log of events, and the daemon goes on', async () => {
    const events: string[] = []
    for await (const event of daemon.client.sse('events', { query: { after: 0, follow: false, name: 'big' } }))
      events.push(event.data)

    expect(events.at(-2)).toContain('VM_CREATE_FAILED')
    expect(events.at(-2)).toContain('does not fit')
    expect(await daemon.client.upload('image.import', { query: { name: 'other' } }, await tinyTar())).toMatchObject({
      name: 'other',
    })
  })
})

describe.skipIf(!haveBinary || !canMount)('a state folder that is full, record and all', () => {
  let daemon: Daemon
  let folder: string
  let state: string

  /** Fills the disk to the last block, as guests do. */
  const fill = (): void => {
    for (let size = 2 ** 20; size >= 4096; size /= 2) {
      try {
        for (;;) writeFileSync(join(state, `filler-${fillers++}`), Buffer.alloc(size, 1))
      } catch {
        // full, for pieces of this size
      }
    }
  }
  let fillers = 0
  const empty = (): void => {
    for (const name of readdirSync(state)) if (name.startsWith('filler-')) rmSync(join(state, name))
  }
  const freeBytes = (): number => {
    const { bavail, bsize } = statfsSync(state)
    return bavail * bsize
  }
  const status = async (name: string): Promise<Vm> => await daemon.client.call('vm.get', { params: { name } })
  const pieces = () => (existsSync(join(state, 'ballast')) ? readdirSync(join(state, 'ballast')).length : 0)
  const waitUntil = async (what: string, condition: () => boolean | Promise<boolean>): Promise<void> => {
    for (const end = Date.now() + 30_000; !(await condition()); await Bun.sleep(50))
      if (Date.now() > end) throw new Error(`not in time: ${what}`)
  }

  beforeAll(async () => {
    folder = newFolder()
    state = join(folder, 'state')
    mount(state, '48m')
    daemon = await startDaemon({ fake: true, folder })
    await seedFake(daemon)
    for (const name of ['stops', 'sleeps', 'ends', 'goes', 'dies'])
      await createVm(daemon, { name, disk_mb: 64, cmd: ['sleep', '10000'] })
    await waitUntil('a ballast is made', () => pieces() === 16)
    fill()
    expect(freeBytes()).toBe(0)
  }, 60_000)
  afterAll(async () => {
    await daemon.crash()
    for (const pid of machinesOf(state)) process.kill(pid, 'SIGKILL')
    unmount(state)
    await clean(daemon)
  })

  test('lets a vm be stopped', async () => {
    expect(await daemon.client.call('vm.stop', { params: { name: 'stops' }, body: { timeout_s: 0 } })).toMatchObject({
      status: 'stopped',
    })
    expect(pieces()).toBeLessThan(16)
  })

  test('records the end of a machine that nobody asked for', async () => {
    fill()
    const { pid } = await status('ends')
    process.kill(pid ?? 0, 'SIGKILL')

    await waitUntil('the vm is crashed', async () => (await status('ends')).status === 'crashed')
  })

  test('lets a vm sleep whose memory fits, and one that runs go on', async () => {
    fill()
    expect(await daemon.client.call('vm.standby', { params: { name: 'sleeps' } })).toMatchObject({ status: 'standby' })
    expect(
      await daemon.client.call('vm.exec', { params: { name: 'goes' }, body: { argv: ['echo', 'here'] } }),
    ).toMatchObject({ exit_code: 0, stdout: 'here\n' })
  })

  test('lets vms be deleted, until there is room again and the ballast is back', async () => {
    for (const name of ['goes', 'dies']) {
      fill()
      await daemon.client.call('vm.delete', { params: { name } })
      await expect(status(name)).rejects.toMatchObject({ code: 'vm_not_found' })
    }
    expect(readdirSync(join(state, 'vms')).length).toBe(3)

    empty()
    await waitUntil('the ballast is back', () => pieces() === 16)
    await createVm(daemon, { name: 'new', disk_mb: 64, cmd: ['sleep', '10000'] })
  })

  test('is no reason for a daemon not to start, nor to forget its vms', async () => {
    fill()
    await daemon.crash()

    daemon = await startDaemon({ fake: true, folder })

    expect((await status('new')).status).toBe('running')
    expect((await status('sleeps')).status).toBe('standby')
    await daemon.client.call('vm.delete', { params: { name: 'new' } })
    empty()
  }, 30_000)

  test('says that it is full, whatever was asked, when nothing of the ballast is left', async () => {
    await createVm(daemon, { name: 'late', disk_mb: 64, cmd: ['sleep', '10000'] })
    const body = (name: string) => ({ params: { name } })
    const ask: Readonly<Record<string, () => Promise<unknown>>> = {
      'create a vm': () => createVm(daemon, { name: 'more', disk_mb: 64, cmd: ['sleep', '9'] }),
      'create another with a key': () =>
        daemon.client.call('vm.create', { body: { name: 'keyed', cmd: ['sleep', '9'] } }, { idempotencyKey: 'k' }),
      'make a token': () => daemon.client.call('token.create', { body: { name: 't', scope: 'read' } }),
      'import an image': async () =>
        await daemon.client.upload('image.import', { query: { name: 'third' } }, await tinyTar()),
      'fork one': () => daemon.client.call('vm.fork', { ...body('late'), body: { name: 'forked' } }),
      'put one to sleep': () => daemon.client.call('vm.standby', body('late')),
      'wake one': () => daemon.client.call('vm.restore', body('sleeps')),
      'start one': () => daemon.client.call('vm.start', body('stops')),
      'pause one': () => daemon.client.call('vm.pause', body('late')),
    }
    const said: Record<string, string> = {}
    for (const [what, doIt] of Object.entries(ask)) {
      rmSync(join(state, 'ballast'), { recursive: true, force: true })
      fill()
      said[what] = await doIt().then(
        () => 'done',
        (error: unknown) => (error as { code?: string }).code ?? String(error),
      )
    }

    const codes = new Set(Object.values(said))
    expect([said, codes.has('disk_exhausted')]).toEqual([said, true])
    expect(Object.entries(said).filter(([, code]) => !['done', 'disk_exhausted'].includes(code))).toEqual([])
  }, 60_000)
})
