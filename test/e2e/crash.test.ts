import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import type { Vm } from '../../src/contract/vm.ts'
import type { VmCreate } from '../../src/contract/vm-spec.ts'
import { clean, createVm, haveBinary, machinesOf, startDaemon, type Daemon } from './daemon.ts'
import { expectSettled, STEPS } from './settled.ts'

const at = (name: string) => ({ params: { name } })
const BOOTS_S = 90

/**
 * Every step of every verb on real guests. One state folder lives through all the crashes, with a guest that none of
 * them may touch; each test takes the vms on from where the one before left them, since what costs here is a boot.
 */
describe.skipIf(!haveBinary)('kill -9 of the daemon over real guests', () => {
  let daemon: Daemon
  let bystander: Vm
  let processes = 0
  const guest = (one: Daemon, name: string, key?: string) =>
    createVm(one, { name, memory_mb: 160, cmd: ['sleep', '100000'] } satisfies VmCreate, key)
  const status = async (name: string) => (await daemon.client.call('vm.get', at(name))).status
  const stop = (one: Daemon, name: string) => one.client.call('vm.stop', { ...at(name), body: {} })
  const start = (one: Daemon, name: string) => one.client.call('vm.start', { ...at(name), body: {} })

  beforeAll(async () => {
    daemon = await startDaemon()
    bystander = await guest(daemon, 'bystander')
    processes = machinesOf(daemon.state).length
  }, 120_000)
  afterAll(async () => {
    await clean(daemon)
  })

  /** A verb is cut short at a step, and the next daemon makes everything true again. */
  const cut = async (step: string, verb: (one: Daemon) => Promise<unknown>): Promise<string[]> => {
    await daemon.end()
    const crashing = await startDaemon({ folder: daemon.folder, flags: ['--crash-at', step] })
    verb(crashing).catch(() => undefined)
    expect(await crashing.exited).not.toBe(0) // it was killed at the step
    daemon = await startDaemon({ folder: daemon.folder })
    const vms = await expectSettled(daemon, processes, BOOTS_S)
    expect(vms.find((vm) => vm.name === 'bystander')).toMatchObject({
      status: 'running',
      pid: bystander.pid ?? 0,
      uid: bystander.uid,
    })
    return vms.map((vm) => vm.name).filter((name) => name !== 'bystander')
  }

  for (const step of STEPS.create) {
    test(`at ${step} of a create leaves nothing of it, or all`, async () => {
      const before = (await daemon.client.call('vm.list', {})).length - 1
      const names = await cut(step, (one) => guest(one, step, step))

      // from the moment the machine is in the row, the create is finished by the next daemon
      expect(names.length - before).toBe(step === 'machine-recorded' ? 1 : 0)
      if (step !== 'machine-started' && step !== 'machine-recorded') return
      expect(await guest(daemon, step, step)).toMatchObject({ name: step, status: 'running' }) // a retry with its key
      expect(machinesOf(daemon.state).length).toBe((before + 2) * processes)
    }, 180_000)
  }

  for (const step of STEPS.start) {
    test(`at ${step} of a start leaves a vm that is what it says`, async () => {
      if ((await status('machine-recorded')) === 'running') await stop(daemon, 'machine-recorded')

      await cut(step, (one) => start(one, 'machine-recorded'))

      // a machine that is in the row boots on; one that is not has been ended
      expect(await status('machine-recorded')).toBe(
        step === 'machine-recorded' || step === 'ready' ? 'running' : 'crashed',
      )
    }, 180_000)
  }

  for (const step of STEPS.stop) {
    test(`at ${step} of a stop is a stop`, async () => {
      if ((await status('machine-recorded')) !== 'running') await start(daemon, 'machine-recorded')

      await cut(step, (one) => stop(one, 'machine-recorded'))

      expect(await status('machine-recorded')).toBe('stopped')
    }, 180_000)
  }

  test('of a delete, at any step, is a delete', async () => {
    const names = ['machine-recorded', 'machine-started', 'third', 'fourth']
    await Promise.all([start(daemon, 'machine-recorded'), guest(daemon, 'third'), guest(daemon, 'fourth')])

    for (const step of STEPS.delete) {
      const name = names.shift() ?? ''
      expect((await cut(step, (one) => one.client.call('vm.delete', at(name)))).sort()).toEqual(names.toSorted())
    }
  }, 240_000)
})
