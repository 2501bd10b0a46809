import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync, readdirSync, rmSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { clean, cli, createVm, haveBinary, machinesOf, seedFake, startDaemon, type Daemon } from '../e2e/daemon.ts'

const at = (name: string) => ({ params: { name } })

/** The compiled file on the fake driver: memory on disk and back. */
describe.skipIf(!haveBinary)('standby', () => {
  let daemon: Daemon
  const files = (): string[] => readdirSync(join(daemon.state, 'snapshots'))
  const say = async (name: string, ...argv: string[]) =>
    await daemon.client.call('vm.exec', { ...at(name), body: { argv } })

  beforeAll(async () => {
    daemon = await startDaemon({ fake: true })
    await seedFake(daemon)
  })
  afterAll(async () => {
    await clean(daemon)
  })

  test('ends the machine and keeps its memory, and restore runs it on', async () => {
    const vm = await createVm(daemon, { name: 'one', cmd: ['sleep', '1000'] })

    expect(await daemon.client.call('vm.standby', at('one'))).toMatchObject({ status: 'standby', pid: null })

    expect(machinesOf(daemon.state)).toEqual([])
    expect(existsSync(join(daemon.run, 'm', vm.id.toString(36)))).toBe(false)
    expect(files().length).toBe(1)
    expect((await daemon.client.call('system.summary', {})).capacity.cpu.allocated).toBe(0)
    await expect(say('one', 'true')).rejects.toMatchObject({
      code: 'vm_wrong_state',
      hint: '`aerie restore one` wakes it',
    })
    await expect(daemon.client.call('vm.standby', at('one'))).rejects.toMatchObject({ code: 'vm_wrong_state' })

    expect(await daemon.client.call('vm.restore', at('one'))).toMatchObject({
      status: 'running',
      uid: vm.uid,
      vsock_cid: vm.vsock_cid,
      mac_address: vm.mac_address,
    })

    expect(files()).toEqual([])
    expect(await say('one', 'hostname')).toMatchObject({ stdout: 'one\n' })
    expect(await daemon.client.call('vm.stop', { ...at('one'), body: {} })).toMatchObject({ status: 'stopped' }) // its session is there again
    await daemon.client.call('vm.delete', at('one'))
  })

  test('ten times over, of a paused vm too, loses nothing', async () => {
    await createVm(daemon, { name: 'again', cmd: ['sleep', '1000'] })
    for (let turn = 0; turn < 10; turn++) {
      if (turn % 2 === 1) await daemon.client.call('vm.pause', at('again'))
      await daemon.client.call('vm.standby', at('again'))
      expect(await daemon.client.call('vm.restore', at('again'))).toMatchObject({ status: 'running' })
      expect(await say('again', 'echo', String(turn))).toMatchObject({ stdout: `${turn}\n` })
    }
    await daemon.client.call('vm.delete', at('again'))
    expect(machinesOf(daemon.state)).toEqual([])
  }, 30_000)

  test('start wakes it, stop lets its memory go, and delete leaves nothing', async () => {
    const vm = await createVm(daemon, { name: 'woken', cmd: ['sleep', '1000'] })
    await daemon.client.call('vm.standby', at('woken'))
    expect(await daemon.client.call('vm.start', { ...at('woken'), body: {} })).toMatchObject({ status: 'running' })

    await daemon.client.call('vm.standby', at('woken'))
    expect(await daemon.client.call('vm.stop', { ...at('woken'), body: {} })).toMatchObject({ status: 'stopped' })
    expect(files()).toEqual([])
    expect(await daemon.client.call('vm.start', { ...at('woken'), body: {} })).toMatchObject({ status: 'running' })

    await daemon.client.call('vm.standby', at('woken'))
    await daemon.client.call('vm.delete', at('woken'))
    expect(existsSync(join(daemon.state, 'vms', vm.uid))).toBe(false)
    expect(files()).toEqual([])
  }, 20_000)

  test('what was saved and is damaged is refused, and stays', async () => {
    await createVm(daemon, { name: 'damaged', cmd: ['sleep', '1000'] })
    await daemon.client.call('vm.standby', at('damaged'))
    const folder = join(daemon.state, 'snapshots', files()[0] ?? '')
    truncateSync(join(folder, 'memory'), 10)

    await expect(daemon.client.call('vm.restore', at('damaged'))).rejects.toMatchObject({ code: 'vm_restore_failed' })

    expect(await daemon.client.call('vm.get', at('damaged'))).toMatchObject({ status: 'standby' })
    expect(machinesOf(daemon.state)).toEqual([])
    rmSync(folder, { recursive: true })
    await expect(daemon.client.call('vm.restore', at('damaged'))).rejects.toMatchObject({ code: 'vm_restore_failed' })
    await daemon.client.call('vm.delete', at('damaged'))
  })

  test('a host that is full refuses to wake one more', async () => {
    await createVm(daemon, { name: 'sleeper', memory_mb: 64, cmd: ['sleep', '1000'] })
    await daemon.client.call('vm.standby', at('sleeper'))
    const { capacity } = await daemon.client.call('system.summary', {})
    const others = await Promise.all(
      Array.from({ length: capacity.cpu.limit }, (_, index) =>
        createVm(daemon, { name: `full-${index}`, memory_mb: 64, cmd: ['sleep', '1000'] }),
      ),
    )

    await expect(daemon.client.call('vm.restore', at('sleeper'))).rejects.toMatchObject({ code: 'capacity_exhausted' })

    expect(await daemon.client.call('vm.get', at('sleeper'))).toMatchObject({ status: 'standby' })
    await Promise.all(
      [...others.map((vm) => vm.name), 'sleeper'].map((name) => daemon.client.call('vm.delete', at(name))),
    )
  }, 30_000)

  test('a stopped vm has no memory to keep', async () => {
    await createVm(daemon, { name: 'ended', cmd: ['sleep', '1000'] })
    await daemon.client.call('vm.stop', { ...at('ended'), body: {} })

    await expect(daemon.client.call('vm.standby', at('ended'))).rejects.toMatchObject({ code: 'vm_wrong_state' })
    await expect(daemon.client.call('vm.restore', at('ended'))).rejects.toMatchObject({ code: 'vm_wrong_state' })
    await daemon.client.call('vm.delete', at('ended'))
  })

  test('the command line says it', async () => {
    await createVm(daemon, { name: 'said', cmd: ['sleep', '1000'] })

    expect(await cli(daemon, ['standby', 'said'])).toMatchObject({ code: 0, stdout: 'said\n' })
    expect(await cli(daemon, ['restore', 'said'])).toMatchObject({ code: 0, stdout: 'said\n' })

    expect((await cli(daemon, ['exec', 'said', 'echo', 'there'])).stdout).toBe('there\n')
    await daemon.client.call('vm.delete', at('said'))
  })
})
