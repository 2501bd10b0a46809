import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { kvmSupport } from '../../src/linux/kvm.ts'
import { clean, createVm, haveBinary, startDaemon, type Daemon } from './daemon.ts'

/** Only QEMU has it. */
describe.skipIf(!haveBinary || kvmSupport().usable)('the user network', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon()
    await createVm(daemon, { name: 'n', hypervisor: 'qemu', network: { mode: 'user' }, cmd: ['sleep', '100000'] })
  }, 240_000)
  afterAll(async () => {
    await clean(daemon)
  })
  const exec = (script: string, name = 'n') =>
    daemon.client.call('vm.exec', { params: { name }, body: { argv: ['sh', '-c', script] } })

  test('the user network gives an address and reaches the host, as it says', async () => {
    const server = Bun.serve({ hostname: '127.0.0.1', port: 0, fetch: () => new Response('from the host\n') })
    try {
      expect((await exec('ip addr show eth0')).stdout).toContain('10.0.2.15')
      expect((await exec(`wget -q -O - http://10.0.2.2:${server.port}/`)).stdout).toBe('from the host\n')
    } finally {
      await server.stop(true)
    }
  }, 240_000)

  test('a connection is reset in a fork and after a standby, and the mother of the fork keeps hers', async () => {
    const open = new Set<unknown>()
    const server = Bun.listen({
      hostname: '127.0.0.1',
      port: 0,
      socket: { open: (socket) => void open.add(socket), close: (socket) => void open.delete(socket), data: () => {} },
    })
    const connected = async (name: string): Promise<string> =>
      (await exec('grep -c "^ *[0-9]*: [0-9A-F:]* 0202000A:[0-9A-F]* 01" /proc/net/tcp', name)).stdout
    const ended = (name: string) => exec('until test -e /dev/shm/end; do usleep 100000; done', name)
    try {
      await exec(
        `mkfifo /dev/shm/in; sleep 100000 >/dev/shm/in & { nc 10.0.2.2 ${server.port} </dev/shm/in >/dev/null 2>&1; >/dev/shm/end; } >/dev/null 2>&1 &
        until grep -q " 0202000A:[0-9A-F]* 01" /proc/net/tcp; do usleep 100000; done`,
      )

      await daemon.client.call('vm.fork', { params: { name: 'n' }, body: { name: 'child' } })

      expect(await connected('child')).toBe('0\n')
      await ended('child')
      expect((await exec('tail -n 1 /etc/hosts', 'child')).stdout).toBe('10.0.2.15\tchild\n')
      expect(await connected('n')).toBe('1\n')
      expect(open.size).toBe(1)
      await daemon.client.call('vm.delete', { params: { name: 'child' } })

      await daemon.client.call('vm.standby', { params: { name: 'n' } })
      await daemon.client.call('vm.restore', { params: { name: 'n' } })

      expect(await connected('n')).toBe('0\n')
      await ended('n')
    } finally {
      server.stop(true)
    }
  }, 240_000)
})
