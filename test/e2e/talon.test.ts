import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { readFileSync, writeFileSync } from 'node:fs'
import { kvmSupport } from '../../src/linux/kvm.ts'
import {
  AERIE,
  clean,
  cli,
  createVm,
  haveBinary,
  machinesOf,
  newFolder,
  startDaemon,
  until,
  type Daemon,
} from './daemon.ts'
import { Netns } from '../linux/netns.ts'

const { usable, reason } = kvmSupport()
const missing = !haveBinary
  ? 'nothing has been built'
  : !usable
    ? `${reason}; test/bed/aerie runs it where KVM is real`
    : undefined
const at = (name: string) => ({ params: { name } })

describe.skipIf(missing !== undefined)(
  `guests on talon${missing === undefined ? '' : ` (skipped: ${missing})`}`,
  () => {
    let daemon: Daemon
    const start = async (folder: string) => startDaemon({ folder, flags: ['--cpu-oversubscription', '32'] })
    beforeAll(async () => {
      daemon = await start(newFolder())
    }, 240_000)
    afterAll(async () => {
      await clean(daemon)
    })

    test('it is the default, and runs a command from an image', async () => {
      const info = await daemon.client.call('system.info', {})

      const ran = await cli(daemon, ['run', 'base', '--', 'uname', '-sm'])

      expect([info.hypervisor, info.accelerator]).toEqual(['talon', 'kvm'])
      expect(ran).toEqual({ code: 0, stdout: 'Linux x86_64\n', stderr: '' })
      expect(machinesOf(daemon.state)).toEqual([])
    }, 240_000)

    test('doctor tells what its jail can enforce', async () => {
      const { checks } = await daemon.client.call('system.doctor', {})

      expect(checks.find((one) => one.name === 'talon')).toMatchObject({
        status: 'ok',
        message: expect.stringMatching(/namespaces, seccomp and Landlock \d/) as unknown,
      })
    })

    test('a guest outlives its daemon, pauses, goes on and stops', async () => {
      const vm = await createVm(daemon, { name: 'g', cmd: ['sleep', '100000'] })
      const [pid = 0] = machinesOf(daemon.state)
      expect(vm).toMatchObject({ hypervisor: 'talon', pid })
      expect(readFileSync(`/proc/${pid}/status`, 'utf8')).toMatch(/^Uid:\t10971\d+\t/m)

      await daemon.crash()
      daemon = await start(daemon.folder)

      expect(await daemon.client.call('vm.get', at('g'))).toMatchObject({ status: 'running', pid })
      await daemon.client.call('vm.pause', at('g'))
      expect(await daemon.client.call('vm.get', at('g'))).toMatchObject({ status: 'paused' })
      await daemon.client.call('vm.resume', at('g'))
      expect(await cli(daemon, ['exec', 'g', '--', 'cat', '/proc/sys/kernel/hostname'])).toEqual({
        code: 0,
        stdout: 'g\n',
        stderr: '',
      })
      expect((await cli(daemon, ['stop', 'g'])).code).toBe(0)
      await until(() => machinesOf(daemon.state).length === 0)
    }, 240_000)

    test('its console takes what is typed and answers, also after a crash of the daemon', async () => {
      await createVm(daemon, { name: 'c', cmd: ['sleep', '100000'] })
      const script = '(stty -echo; while read -r line; do eval "$line"; done) </dev/ttyS0 >/dev/ttyS0 2>&1 &'
      await daemon.client.call('vm.exec', { ...at('c'), body: { argv: ['sh', '-c', script] } })
      const converse = async (typed: string, answer: string) => {
        const child = Bun.spawn([AERIE, 'console', 'c'], {
          cwd: '/',
          env: { AERIE_HOST: `unix://${daemon.socket}` },
          stdin: 'pipe',
          stdout: 'pipe',
        })
        let seen = ''
        const reading = (async () => {
          for await (const part of child.stdout) seen += Buffer.from(part).toString()
        })()
        child.stdin.write(typed)
        await child.stdin.flush()
        await until(() => seen.includes(answer))
        child.kill()
        await reading
      }

      await converse('echo sum $((40 + 2))\n', 'sum 42') // of a console that has said nothing before
      await daemon.crash()
      daemon = await start(daemon.folder)
      await converse('echo product $((6 * 7))\n', 'product 42')

      expect((await cli(daemon, ['logs', '--source', 'console', 'c'])).stdout).toContain('sum 42\nproduct 42')
      await cli(daemon, ['rm', '-f', 'c'])
    }, 60_000)

    test('a paused guest is deleted by force', async () => {
      await createVm(daemon, { name: 'f', cmd: ['sleep', '100000'] })
      await daemon.client.call('vm.pause', at('f'))

      await cli(daemon, ['rm', '-f', 'f'])

      expect(machinesOf(daemon.state)).toEqual([])
    }, 240_000)

    test('where its jail is forbidden QEMU is the default, and says why', async () => {
      const limit = '/proc/sys/user/max_user_namespaces'
      const before = readFileSync(limit, 'utf8')
      writeFileSync(limit, '0')
      const other = await startDaemon()
      try {
        expect(await other.client.call('system.info', {})).toMatchObject({ hypervisor: 'qemu', accelerator: 'kvm' })
        await until(() => other.log().includes('in place of talon: its jail needs user namespaces'))
        await expect(createVm(other, { hypervisor: 'talon' })).rejects.toMatchObject({ code: 'hypervisor_unavailable' })
      } finally {
        writeFileSync(limit, before)
        await clean(other)
      }
    }, 240_000)

    test('ten clones of a running vm have ten machine-ids and ten random numbers, and share its memory', async () => {
      await createVm(daemon, { name: 'mother', memory_mb: 128, forkable: true, cmd: ['sleep', '100000'] })

      const { vms, failed } = await daemon.client.call('vm.fork', {
        ...at('mother'),
        body: { name: 'clone', count: 10 },
      })

      expect(failed).toEqual([])
      const all = ['mother', ...vms.map((vm) => vm.name)]
      const said: string[][] = []
      for (const name of all)
        said.push(
          (
            await cli(daemon, [
              'exec',
              name,
              '--',
              'sh',
              '-c',
              'hostname; cat /etc/machine-id /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1',
            ])
          ).stdout
            .trim()
            .split('\n'),
        )
      expect(said.map(([name]) => name)).toEqual(all)
      for (const line of [1, 2, 3]) expect(new Set(said.map((lines) => lines[line])).size).toBe(11)
      for (const vm of vms) expect(readFileSync(`/proc/${vm.pid}/maps`, 'utf8')).toContain('/memfd:aerie-ram')
      await Promise.all(all.map((name) => daemon.client.call('vm.delete', at(name))))
      expect(machinesOf(daemon.state)).toEqual([])
    }, 240_000)

    test('guests in one network speak by name, on talon too, before and after a standby', async () => {
      using netns = new Netns()
      const other = await startDaemon({ netns: netns.path, flags: ['--cpu-oversubscription', '32'] })
      try {
        const [a, b] = await Promise.all(
          ['a', 'b'].map((name) => createVm(other, { name, memory_mb: 192, cmd: ['sleep', '100000'] })),
        )
        expect([a?.hypervisor, new Set([a?.ip_address, b?.ip_address]).size]).toEqual(['talon', 2])
        const ping = (from: string, to: string) => cli(other, ['exec', from, '--', 'ping', '-c', '2', to])
        expect((await ping('a', 'b')).code).toBe(0)
        expect((await ping('b', '10.42.0.1')).code).toBe(0)

        await other.client.call('vm.standby', at('b'))
        await other.client.call('vm.restore', at('b'))

        expect((await ping('b', 'a')).code).toBe(0)
        const { vms } = await other.client.call('vm.fork', { ...at('a'), body: { name: 'c' } })
        expect((await ping('c', 'b')).code).toBe(0)
        expect(new Set([a?.ip_address, b?.ip_address, vms[0]?.ip_address]).size).toBe(3)
        expect((await ping('a', 'c')).code).toBe(0)
      } finally {
        await clean(other)
      }
    }, 240_000)
  },
)
