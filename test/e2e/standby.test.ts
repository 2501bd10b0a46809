import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { chmodSync } from 'node:fs'
import {
  clean,
  cli,
  createVm,
  haveBinary,
  machinesOf,
  newFolder,
  startDaemon,
  until,
  type Daemon,
  type Ran,
} from './daemon.ts'

const at = (name: string) => ({ params: { name } })

/** Real guests whose memory goes to disk and back, and their clones; on the driver that is the default here. */
describe.skipIf(!haveBinary)('memory of a real guest', () => {
  let daemon: Daemon
  const start = (folder: string) => startDaemon({ folder, flags: ['--cpu-oversubscription', '32'] })
  const sh = (name: string, script: string): Promise<Ran> => cli(daemon, ['exec', name, '--', 'sh', '-c', script])
  const say = async (name: string, script: string): Promise<string> => {
    const ran = await sh(name, script)
    expect(ran).toMatchObject({ code: 0, stderr: '' })
    return ran.stdout.trim()
  }

  beforeAll(async () => {
    const folder = newFolder()
    chmodSync(folder, 0o711) // a machine is another user
    daemon = await start(folder)
    await createVm(daemon, {
      name: 'm',
      memory_mb: 160,
      forkable: true,
      cmd: ['sh', '-c', 'n=0; while :; do n=$((n+1)); echo $n > /run/count; sleep 0.2; done'],
    })
    await until(async () => (await sh('m', 'cat /run/count')).code === 0)
  }, 180_000)
  afterAll(async () => {
    await clean(daemon)
  })

  test('goes on where it stood, three times, with its disk, its clock and its processes', async () => {
    await say('m', 'echo kept > /dev/shm/kept; echo $$ > /root/pid; hostname > /root/name')
    for (let turn = 1; turn <= 3; turn++) {
      const before = Number(await say('m', `echo ${turn} >> /root/turns; cat /run/count`))
      expect(await daemon.client.call('vm.standby', at('m'))).toMatchObject({ status: 'standby', pid: null })
      expect(machinesOf(daemon.state)).toEqual([])

      expect(await daemon.client.call('vm.restore', at('m'))).toMatchObject({ status: 'running' })

      expect(await say('m', 'cat /dev/shm/kept; cat /root/turns | tail -1')).toBe(`kept\n${turn}`)
      expect(Math.abs(Number(await say('m', 'date +%s')) - Date.now() / 1000)).toBeLessThan(10)
      await until(async () => Number(await say('m', 'cat /run/count')) > before)
    }
    expect(await say('m', 'wc -l < /root/turns')).toBe('3')
  }, 240_000)

  test('sleeps over a crash of the daemon', async () => {
    await say('m', 'echo kept > /dev/shm/kept')
    await daemon.client.call('vm.standby', at('m'))
    await daemon.crash()
    daemon = await start(daemon.folder)

    expect(await cli(daemon, ['restore', 'm'])).toMatchObject({ code: 0, stdout: 'm\n' })

    expect(await say('m', 'cat /dev/shm/kept')).toBe('kept')
  }, 120_000)

  test('a clone of a running guest is somebody of its own', async () => {
    await say('m', 'echo kept > /dev/shm/kept; hostname > /root/name')
    const who =
      'hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/uuid; cat /dev/shm/kept; cat /root/name; grep -c . /etc/hosts'

    const { vms, failed } = await daemon.client.call('vm.fork', { ...at('m'), body: { name: 'c', count: 2 } })

    expect(failed).toEqual([])
    const said = await Promise.all(
      ['m', ...vms.map((vm) => vm.name)].map(async (name) => (await say(name, who)).split('\n')),
    )
    expect(said.map((lines) => lines[0])).toEqual(['m', 'c-1', 'c-2'])
    for (const line of [1, 2]) expect(new Set(said.map((lines) => lines[line])).size).toBe(3) // machine-id, random
    expect(said.map((lines) => [lines[3], lines[4]])).toEqual([
      ['kept', 'm'],
      ['kept', 'm'],
      ['kept', 'm'],
    ])
    // What one writes, memory or disk, the others do not see; and what ran before runs on.
    await say('c-1', 'echo mine > /dev/shm/kept; echo mine > /root/name; sync')
    expect(await say('c-2', 'cat /dev/shm/kept /root/name')).toBe('kept\nm')
    expect(await say('m', 'cat /dev/shm/kept /root/name')).toBe('kept\nm')
    const count = Number(await say('c-2', 'cat /run/count'))
    await until(async () => Number(await say('c-2', 'cat /run/count')) > count)
    expect((await cli(daemon, ['stop', 'c-1'])).code).toBe(0)
    expect(await daemon.client.call('vm.start', { ...at('c-1'), body: {} })).toMatchObject({ status: 'running' })
    expect(await say('c-1', 'cat /root/name; hostname')).toBe('mine\nc-1')
    await Promise.all(vms.map((vm) => daemon.client.call('vm.delete', at(vm.name))))
  }, 240_000)

  test('a clone of the disk alone boots as somebody of its own', async () => {
    const id = await say('m', 'hostname > /root/name; sync; cat /etc/machine-id')
    await daemon.client.call('vm.fork', { ...at('m'), body: { name: 'd', target_state: 'stopped' } })

    expect(await daemon.client.call('vm.start', { ...at('d'), body: {} })).toMatchObject({ status: 'running' })

    const [name, own, kept] = (await say('d', 'hostname; cat /etc/machine-id; cat /root/name; ls /dev/shm')).split('\n')
    expect([name, kept]).toEqual(['d', 'm'])
    expect(own).not.toBe(id)
    await daemon.client.call('vm.delete', at('d'))
  }, 120_000)

  test('a guest that ended after it was woken has its exit code', async () => {
    await createVm(daemon, {
      name: 'e',
      memory_mb: 160,
      cmd: ['sh', '-c', 'while [ ! -e /run/go ]; do sleep 0.1; done; exit 9'],
    })
    await daemon.client.call('vm.standby', at('e'))
    await daemon.client.call('vm.restore', at('e'))

    await sh('e', 'touch /run/go')

    expect(await daemon.client.call('vm.wait', { ...at('e'), query: { for: 'exit', timeout_s: 60 } })).toMatchObject({
      status: 'stopped',
      exit_code: 9,
    })
    await daemon.client.call('vm.delete', at('e'))
  }, 180_000)
})
