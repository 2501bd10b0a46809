import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { closeSync, openSync, readdirSync, readSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { clean, cli, createVm, haveBinary, machinesOf, seedFake, startDaemon, type Daemon } from '../e2e/daemon.ts'

const at = (name: string) => ({ params: { name } })

/** The compiled file on the fake driver: clones of a vm in every state. */
describe.skipIf(!haveBinary)('fork', () => {
  let daemon: Daemon
  const say = async (name: string, ...argv: string[]) =>
    (await daemon.client.call('vm.exec', { ...at(name), body: { argv } })).stdout
  const fork = (name: string, body: Parameters<typeof daemon.client.call<'vm.fork'>>[1]['body'] = {}) =>
    daemon.client.call('vm.fork', { ...at(name), body })
  const remove = (...names: string[]) => Promise.all(names.map((name) => daemon.client.call('vm.delete', at(name))))
  const marker = (uid: string, text?: string): string => {
    const fd = openSync(join(daemon.state, 'vms', uid, 'overlay.img'), 'r+')
    const bytes = Buffer.alloc(4)
    try {
      if (text !== undefined) writeSync(fd, text, 0)
      readSync(fd, bytes, 0, 4, 0)
      return bytes.toString('latin1')
    } finally {
      closeSync(fd)
    }
  }

  beforeAll(async () => {
    daemon = await startDaemon({ fake: true })
    await seedFake(daemon)
  })
  afterEach(async () => {
    await remove(...(await daemon.client.call('vm.list', {})).map((vm) => vm.name))
    expect(machinesOf(daemon.state)).toEqual([])
  })
  afterAll(async () => {
    await clean(daemon)
  })

  test('clones of a running vm run, each as somebody of its own, and the vm goes on', async () => {
    const mother = await createVm(daemon, {
      name: 'mother',
      memory_mb: 64,
      cmd: ['sleep', '1000'],
      metadata: { team: 'a' },
    })
    marker(mother.uid, 'mark')

    const { vms, failed } = await fork('mother', { name: 'child', count: 3 })

    expect(failed).toEqual([])
    expect(vms.map((vm) => [vm.name, vm.status, vm.forked_from])).toEqual(
      ['child-1', 'child-2', 'child-3'].map((name) => [name, 'running', mother.uid]),
    )
    const all = [mother, ...vms]
    for (const what of ['uid', 'vsock_cid', 'mac_address', 'pid'] as const)
      expect(new Set(all.map((vm) => vm[what])).size).toBe(4)
    expect(vms.every((vm) => vm.metadata['team'] === 'a' && vm.image_digest === mother.image_digest)).toBe(true)
    expect(vms.map((vm) => marker(vm.uid))).toEqual(['mark', 'mark', 'mark'])
    const ids = await Promise.all(all.map((vm) => say(vm.name, 'machine-id')))
    expect(new Set(ids).size).toBe(4)
    expect(await Promise.all(all.map((vm) => say(vm.name, 'hostname')))).toEqual(all.map((vm) => `${vm.name}\n`))
    expect(await daemon.client.call('vm.get', at('mother'))).toMatchObject({ status: 'running', pid: mother.pid })
    expect(readdirSync(join(daemon.state, 'snapshots'))).toEqual([])
    expect(await daemon.client.call('vm.stop', { ...at('child-2'), body: {} })).toMatchObject({ status: 'stopped' }) // its own session
  }, 30_000)

  test('a clone may sleep, or be a disk alone, whatever its source is', async () => {
    const mother = await createVm(daemon, { name: 'mother', memory_mb: 64, cmd: ['sleep', '1000'] })
    marker(mother.uid, 'mark')
    const [asleep, off] = [
      await fork('mother', { name: 'asleep', count: 2, target_state: 'standby' }),
      await fork('mother', { name: 'off', target_state: 'stopped' }),
    ]
    expect([...asleep.vms, ...off.vms].map((vm) => [vm.name, vm.status, vm.pid])).toEqual([
      ['asleep-1', 'standby', null],
      ['asleep-2', 'standby', null],
      ['off', 'stopped', null],
    ])
    const snapshots = () => readdirSync(join(daemon.state, 'snapshots'))
    expect(snapshots().length).toBe(1) // of both

    await remove('mother')
    expect(await daemon.client.call('vm.restore', at('asleep-1'))).toMatchObject({ status: 'running' })
    expect(await say('asleep-1', 'hostname')).toBe('asleep-1\n')
    expect(await daemon.client.call('vm.start', { ...at('off'), body: {} })).toMatchObject({ status: 'running' })
    expect(await say('off', 'hostname')).toBe('off\n')

    const more = await fork('asleep-2', { name: 'more' })
    const awake = await fork('asleep-2', { name: 'awake', target_state: 'running' })
    expect([...more.vms, ...awake.vms].map((vm) => [vm.name, vm.status])).toEqual([
      ['more', 'standby'],
      ['awake', 'running'],
    ])
    expect(await say('awake', 'hostname')).toBe('awake\n')
    await daemon.client.call('vm.stop', { ...at('off'), body: {} })
    const cold = await fork('off', { name: 'cold' })
    const warm = await fork('off', { name: 'warm', target_state: 'running' })
    expect([...cold.vms, ...warm.vms].map((vm) => [vm.name, vm.status])).toEqual([
      ['cold', 'stopped'],
      ['warm', 'running'],
    ])
    expect([...cold.vms, ...warm.vms].map((vm) => marker(vm.uid))).toEqual(['mark', 'mark'])
    await expect(fork('off', { target_state: 'standby' })).rejects.toMatchObject({ code: 'vm_wrong_state' })
  }, 30_000)

  test('a paused vm stays paused, and its clones run', async () => {
    await createVm(daemon, { name: 'mother', memory_mb: 64, cmd: ['sleep', '1000'] })
    await daemon.client.call('vm.pause', at('mother'))

    const {
      vms: [child],
    } = await fork('mother', { name: 'child' })

    expect(child).toMatchObject({ status: 'running' })
    expect(await say('child', 'hostname')).toBe('child\n')
    expect(await daemon.client.call('vm.get', at('mother'))).toMatchObject({ status: 'paused' })
    expect(await daemon.client.call('vm.resume', at('mother'))).toMatchObject({ status: 'running' })
  }, 20_000)

  test('names and room are reserved for all of them, or for none', async () => {
    const mother = await createVm(daemon, { name: 'mother', memory_mb: 64, cmd: ['sleep', '1000'] })
    await createVm(daemon, { name: 'child-2', memory_mb: 64, cmd: ['sleep', '1000'] })
    const { capacity } = await daemon.client.call('system.summary', {})

    await expect(fork('mother', { name: 'child', count: 3 })).rejects.toMatchObject({ code: 'vm_exists' })
    await expect(fork('mother', { count: capacity.cpu.limit })).rejects.toMatchObject({ code: 'capacity_exhausted' })
    await expect(fork('mother', { name: 'x'.repeat(62), count: 2 })).rejects.toMatchObject({ code: 'request_invalid' })
    await expect(fork('mother', { count: 65 })).rejects.toMatchObject({ kind: 'invalid' })
    await expect(fork('nobody')).rejects.toMatchObject({ code: 'vm_not_found' })

    expect((await daemon.client.call('vm.list', {})).map((vm) => vm.name).sort()).toEqual(['child-2', 'mother'])
    expect(await daemon.client.call('vm.get', at('mother'))).toMatchObject({ status: 'running', pid: mother.pid })
  }, 20_000)

  test('forks at once have names, CIDs and identities of their own', async () => {
    await createVm(daemon, { name: 'mother', memory_mb: 64, cmd: ['sleep', '1000'] })

    const forks = await Promise.all([fork('mother', { count: 2 }), fork('mother', { count: 2 }), fork('mother')])

    const vms = forks.flatMap((one) => one.vms)
    expect(vms.map((vm) => vm.status)).toEqual(['running', 'running', 'running', 'running', 'running'])
    expect(new Set(vms.map((vm) => vm.name)).size).toBe(5)
    expect(new Set(vms.map((vm) => vm.vsock_cid)).size).toBe(5)
    await remove('mother', ...vms.map((vm) => vm.name))
  }, 30_000)

  test('a fork with the same key finds the clones of the first, and those that are left of them', async () => {
    await createVm(daemon, { name: 'mother', memory_mb: 64, cmd: ['sleep', '1000'] })
    const keyed = (key: string, body: object = { name: 'child', count: 2 }) =>
      daemon.client.call('vm.fork', { ...at('mother'), body }, { idempotencyKey: key })

    const [first, second] = await Promise.all([keyed('f1'), keyed('f1')])

    const uids = first.vms.map((vm) => vm.uid)
    expect(uids).toHaveLength(2)
    expect(second.vms.map((vm) => vm.uid)).toEqual(uids)
    expect((await keyed('f1')).vms.map((vm) => vm.uid)).toEqual(uids)
    await expect(keyed('f1', { count: 3 })).rejects.toMatchObject({ code: 'idempotency_conflict' })
    await expect(createVm(daemon, { name: 'other' }, 'f1')).rejects.toMatchObject({ code: 'idempotency_conflict' })
    await remove('child-1')
    expect(await keyed('f1')).toMatchObject({
      vms: [{ uid: uids[1] ?? '' }],
      failed: [{ name: 'child-1', code: 'vm_deleted' }],
    })
    await remove('child-2')
    const anew = await keyed('f1')
    expect(anew.vms.map((vm) => vm.name)).toEqual(['child-1', 'child-2'])
    expect(anew.vms.map((vm) => vm.uid)).not.toContain(uids[0])
    await expect(keyed('f2')).rejects.toMatchObject({ code: 'vm_exists' })
    await remove('child-1', 'child-2')
    expect((await keyed('f2')).vms).toHaveLength(2)
  })

  test("the command line prints the clones' names", async () => {
    await createVm(daemon, { name: 'mother', memory_mb: 64, cmd: ['sleep', '1000'] })

    expect(await cli(daemon, ['fork', 'mother', 'child', '-n', '2'])).toMatchObject({
      code: 0,
      stdout: 'child-1\nchild-2\n',
      stderr: '',
    })
    expect(await cli(daemon, ['vm', 'fork', '--state', 'standby', 'mother', 'nap', '--output', 'json'])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('"status": "standby"') as string,
    })
    expect(await cli(daemon, ['fork', 'mother', 'child-1'])).toMatchObject({ code: 5 })
  }, 20_000)
})
