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
  const exec = (script: string) =>
    daemon.client.call('vm.exec', { params: { name: 'n' }, body: { argv: ['sh', '-c', script] } })

  test('the user network gives an address and reaches the host, as it says', async () => {
    const server = Bun.serve({ hostname: '127.0.0.1', port: 0, fetch: () => new Response('from the host\n') })
    try {
      expect((await exec('ip addr show eth0')).stdout).toContain('10.0.2.15')
      expect((await exec(`wget -q -O - http://10.0.2.2:${server.port}/`)).stdout).toBe('from the host\n')
    } finally {
      await server.stop(true)
    }
  }, 240_000)
})
