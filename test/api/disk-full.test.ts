import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
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
