import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { chmodSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { clean, cli, createVm, haveBinary, machinesOf, newFolder, startDaemon, until, type Daemon } from './daemon.ts'
import { expectSettled, STEPS } from './settled.ts'

const at = (name: string) => ({ params: { name } })

/**
 * One guest whose memory goes to disk and back, and is cloned, under a daemon that is killed at every step; what it
 * knew before it knows after.
 */
describe.skipIf(!haveBinary)('kill -9 of the daemon over the memory of a real guest', () => {
  let daemon: Daemon
  let processes = 0
  const flags = ['--cpu-oversubscription', '32']
  const status = async () => (await daemon.client.call('vm.get', at('m'))).status
  const known = async (name: string): Promise<string> =>
    (
      await cli(daemon, [
        'exec',
        name,
        '--',
        'sh',
        '-c',
        'hostname; cat /dev/shm/known; echo on >> /root/disk && sync && echo written',
      ])
    ).stdout

  beforeAll(async () => {
    const folder = newFolder()
    chmodSync(folder, 0o711) // a machine is another user
    daemon = await startDaemon({ folder, flags })
    await createVm(daemon, { name: 'm', memory_mb: 128, forkable: true, cmd: ['sleep', '100000'] })
    processes = machinesOf(daemon.state).length
    expect((await cli(daemon, ['exec', 'm', '--', 'sh', '-c', 'echo known > /dev/shm/known'])).code).toBe(0)
  }, 120_000)
  afterAll(async () => {
    await clean(daemon)
  })

  const cut = async (step: string, verb: (one: Daemon) => Promise<unknown>): Promise<void> => {
    await daemon.end()
    const crashing = await startDaemon({ folder: daemon.folder, flags: [...flags, '--crash-at', step] })
    verb(crashing).catch(() => undefined)
    expect(await crashing.exited).not.toBe(0) // it was killed at the step
    daemon = await startDaemon({ folder: daemon.folder, flags })
  }
  const expectWhole = async () => {
    const vms = await expectSettled(daemon, processes, 90)
    expect(await known('m')).toBe('m\nknown\nwritten\n')
    expect(readdirSync(join(daemon.state, 'snapshots'))).toEqual([])
    return vms
  }

  for (const step of STEPS.standby) {
    test(`at ${step} of a standby loses nothing`, async () => {
      await cut(step, (one) => one.client.call('vm.standby', at('m')))

      expect(await status()).toBe(step === 'held' ? 'running' : step === 'saved' ? 'paused' : 'standby')
      if (step === 'saved') await daemon.client.call('vm.resume', at('m'))
      if (step === 'standby-recorded') await daemon.client.call('vm.restore', at('m'))
      await expectWhole()
    }, 180_000)
  }

  for (const step of STEPS.restore) {
    test(`at ${step} of a restore loses nothing`, async () => {
      await daemon.client.call('vm.standby', at('m'))

      await cut(step, (one) => one.client.call('vm.restore', at('m')))

      if (step === 'saved-let-go' || step === 'restored') await until(async () => (await status()) === 'running', 90)
      else {
        expect(await status()).toBe('standby')
        expect(machinesOf(daemon.state)).toEqual([])
        await daemon.client.call('vm.restore', at('m'))
      }
      await expectWhole()
    }, 180_000)
  }

  for (const step of STEPS.fork) {
    test(`at ${step} of a fork leaves its source whole, and a whole clone or none`, async () => {
      await cut(step, (one) => one.client.call('vm.fork', { ...at('m'), body: { name: 'clone' } }))

      const vms = await expectWhole()
      expect(vms.map((vm) => vm.name)).toEqual(step === 'ready' ? ['m', 'clone'] : ['m'])
      if (step === 'ready') expect(await known('clone')).toBe('clone\nknown\nwritten\n')
    }, 180_000)
  }
})
