import { describe, expect, test } from 'bun:test'
import { kvmSupport } from '../../src/linux/kvm.ts'
import { clean, createVm, haveBinary, startDaemon } from './daemon.ts'

const { usable, reason } = kvmSupport()

describe.skipIf(usable || !haveBinary)('a host without KVM', () => {
  test('refuses talon with the reason, whether a vm asks for it or the configuration', async () => {
    for (const flags of [[], ['--hypervisor', 'talon']]) {
      const daemon = await startDaemon({ flags })
      try {
        await expect(createVm(daemon, flags.length === 0 ? { hypervisor: 'talon' } : {})).rejects.toMatchObject({
          code: 'hypervisor_unavailable',
          message: expect.stringContaining(reason) as unknown,
        })
        expect(await daemon.client.call('vm.list', {})).toEqual([])
      } finally {
        await clean(daemon)
      }
    }
  }, 240_000)
})
