import { describe, expect, test } from 'bun:test'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { clean, createVm, haveBinary, seedFake, startDaemon, until, type Daemon } from '../e2e/daemon.ts'
import { expectSettled, STEPS } from '../e2e/settled.ts'

describe.skipIf(!haveBinary)('kill -9 of the daemon', () => {
  const at = (name: string) => ({ params: { name } })

  /** One vm runs before the crash; the verb is cut short at the step; another daemon takes over. */
  const cut = async (
    step: string,
    verb: (daemon: Daemon) => Promise<unknown>,
    prepare?: (daemon: Daemon) => Promise<unknown>,
  ) => {
    const before = await startDaemon({ fake: true })
    await seedFake(before)
    await createVm(before, { name: 'bystander', cmd: ['sleep', '1000'] })
    await prepare?.(before)
    await before.end()
    const crashing = await startDaemon({ fake: true, folder: before.folder, flags: ['--crash-at', step] })
    verb(crashing).catch(() => undefined)
    expect(await crashing.exited).not.toBe(0) // it was killed at the step
    return await startDaemon({ fake: true, folder: before.folder })
  }

  for (const step of STEPS.create) {
    test(`at ${step} of a create leaves nothing of it, and a retry with its key makes it`, async () => {
      const daemon = await cut(step, (one) => createVm(one, { name: 'cut', cmd: ['sleep', '1000'] }, 'key'))
      try {
        // from the moment the machine is in the row, the create is finished by the next daemon
        const vms = await expectSettled(daemon)
        expect(vms.map((vm) => vm.name).filter((name) => name !== 'bystander').length).toBeLessThanOrEqual(
          step === 'machine-recorded' ? 1 : 0,
        )
        expect(await createVm(daemon, { name: 'cut', cmd: ['sleep', '1000'] }, 'key')).toMatchObject({
          name: 'cut',
          status: 'running',
        })
        await expectSettled(daemon)
      } finally {
        await clean(daemon)
      }
    }, 30_000)
  }

  for (const step of STEPS.start) {
    test(`at ${step} of a start leaves a vm that is what it says`, async () => {
      const stopped = async (one: Daemon) => {
        await createVm(one, { name: 'cut', cmd: ['sleep', '1000'] })
        await one.client.call('vm.stop', { ...at('cut'), body: {} })
      }
      const daemon = await cut(step, (one) => one.client.call('vm.start', { ...at('cut'), body: {} }), stopped)
      try {
        const vms = await expectSettled(daemon)
        const vm = vms.find((one) => one.name === 'cut')
        expect(['crashed', 'running', 'stopped']).toContain(vm?.status ?? 'gone')
        if (vm?.status !== 'running')
          expect(await daemon.client.call('vm.start', { ...at('cut'), body: {} })).toMatchObject({ status: 'running' })
      } finally {
        await clean(daemon)
      }
    }, 30_000)
  }

  for (const step of STEPS.stop) {
    test(`at ${step} of a stop is a stop`, async () => {
      const daemon = await cut(
        step,
        (one) => one.client.call('vm.stop', { ...at('cut'), body: {} }),
        (one) => createVm(one, { name: 'cut', cmd: ['sleep', '1000'] }),
      )
      try {
        const vms = await expectSettled(daemon)
        expect(vms.find((one) => one.name === 'cut')).toMatchObject({ status: 'stopped' })
      } finally {
        await clean(daemon)
      }
    }, 30_000)
  }

  for (const step of STEPS.delete) {
    test(`at ${step} of a delete is a delete`, async () => {
      const daemon = await cut(
        step,
        (one) => one.client.call('vm.delete', at('cut')),
        (one) => createVm(one, { name: 'cut', cmd: ['sleep', '1000'] }),
      )
      try {
        expect((await expectSettled(daemon)).map((vm) => vm.name)).toEqual(['bystander'])
      } finally {
        await clean(daemon)
      }
    }, 30_000)
  }

  const made = (name: string) => async (one: Daemon) => {
    await createVm(one, { name, memory_mb: 64, cmd: ['sleep', '1000'] })
  }

  for (const step of STEPS.standby) {
    test(`at ${step} of a standby leaves a vm that runs, is paused, or sleeps whole`, async () => {
      const daemon = await cut(step, (one) => one.client.call('vm.standby', at('cut')), made('cut'))
      try {
        const { status } = await daemon.client.call('vm.get', at('cut'))
        expect(status).toBe(step === 'held' ? 'running' : step === 'saved' ? 'paused' : 'standby')
        if (status === 'paused') await daemon.client.call('vm.resume', at('cut'))
        if (status === 'standby') await daemon.client.call('vm.restore', at('cut'))
        const vms = await expectSettled(daemon)
        expect(vms.find((one) => one.name === 'cut')).toMatchObject({ status: 'running' })
        expect(readdirSync(join(daemon.state, 'snapshots'))).toEqual([])
      } finally {
        await clean(daemon)
      }
    }, 30_000)
  }

  for (const step of STEPS.restore) {
    test(`at ${step} of a restore leaves a vm that sleeps whole, or runs`, async () => {
      const asleep = async (one: Daemon) => {
        await made('cut')(one)
        await one.client.call('vm.standby', at('cut'))
      }
      const daemon = await cut(step, (one) => one.client.call('vm.restore', at('cut')), asleep)
      try {
        const late = step === 'saved-let-go' || step === 'restored'
        if (late) await daemon.client.call('vm.wait', { ...at('cut'), query: { for: 'ready', timeout_s: 10 } })
        await until(
          async () => (await daemon.client.call('vm.get', at('cut'))).status === (late ? 'running' : 'standby'),
          10,
        )
        if (!late) await daemon.client.call('vm.restore', at('cut'))
        expect((await expectSettled(daemon)).find((one) => one.name === 'cut')).toMatchObject({ status: 'running' })
        expect(await daemon.client.call('vm.exec', { ...at('cut'), body: { argv: ['hostname'] } })).toMatchObject({
          stdout: 'cut\n',
        })
      } finally {
        await clean(daemon)
      }
    }, 30_000)
  }

  for (const step of STEPS.fork) {
    test(`at ${step} of a fork leaves its source running, and whole clones or none`, async () => {
      const daemon = await cut(
        step,
        (one) => one.client.call('vm.fork', { ...at('cut'), body: { name: 'clone', count: 2 } }),
        made('cut'),
      )
      try {
        const vms = await expectSettled(daemon)
        expect(vms.find((one) => one.name === 'cut')).toMatchObject({ status: 'running' })
        const clones = vms.filter((one) => one.name.startsWith('clone'))
        expect(clones.every((one) => one.status === 'running')).toBe(true)
        if (step !== 'ready') expect(clones).toEqual([])
        await Promise.all(clones.map((one) => daemon.client.call('vm.delete', at(one.name))))
        expect(
          (await daemon.client.call('vm.fork', { ...at('cut'), body: { name: 'clone', count: 2 } })).vms.length,
        ).toBe(2)
        await expectSettled(daemon)
      } finally {
        await clean(daemon)
      }
    }, 30_000)
  }

  test('a workload that ended while no daemon looked has its exit code', async () => {
    const first = await startDaemon({ fake: true })
    await seedFake(first)
    await createVm(first, { name: 'short', cmd: ['sh', '-c', 'sleep 0.6; exit 9'] })
    await first.crash()
    await Bun.sleep(900) // the workload's own time

    const second = await startDaemon({ fake: true, folder: first.folder })
    try {
      expect(
        await second.client.call('vm.wait', { ...at('short'), query: { for: 'exit', timeout_s: 10 } }),
      ).toMatchObject({ status: 'stopped', exit_code: 9 })
      await expectSettled(second)
    } finally {
      await clean(second)
    }
  }, 30_000)

  test('a machine that was killed while no daemon looked is crashed, with the reason', async () => {
    const first = await startDaemon({ fake: true })
    await seedFake(first)
    const vm = await createVm(first, { name: 'shot', cmd: ['sleep', '1000'] })
    await first.crash()
    process.kill(vm.pid ?? 0, 'SIGKILL')

    const second = await startDaemon({ fake: true, folder: first.folder })
    try {
      const found = await second.client.call('vm.get', at('shot'))
      expect(found).toMatchObject({ status: 'crashed', pid: null })
      expect(found.status_message).toContain('while the daemon was away')
    } finally {
      await clean(second)
    }
  }, 30_000)

  for (let seed = 1; seed <= 20; seed++) {
    test(`at a random moment of much work loses and leaves nothing (seed ${seed})`, async () => {
      let state = (seed * 2654435761) >>> 0
      const random = (below: number) => {
        state = (state * 1664525 + 1013904223) >>> 0
        return state % below
      }
      let daemon = await startDaemon({ fake: true })
      try {
        await seedFake(daemon)
        await createVm(daemon, { name: 'rock', memory_mb: 64, cmd: ['sleep', '1000'] })
        for (let round = 0; round < 2; round++) {
          const one = daemon
          const work = Array.from({ length: 6 }, async (_, index) => {
            const name = `w${round}-${index}`
            await Bun.sleep(random(60))
            await createVm(one, { name, memory_mb: 64, cmd: ['sleep', '1000'] })
            if (random(2) === 0) await one.client.call('vm.stop', { ...at(name), body: {} })
            if (random(2) === 0) await one.client.call('vm.delete', at(name))
          })
          const done = Promise.allSettled(work)
          await Bun.sleep(random(400))
          await daemon.crash()
          await done
          daemon = await startDaemon({ fake: true, folder: daemon.folder })
          const vms = await expectSettled(daemon)
          expect(vms.find((vm) => vm.name === 'rock')).toMatchObject({ status: 'running' })
        }
      } finally {
        await clean(daemon)
      }
    }, 60_000)
  }

  test('a second daemon on the same state folder is refused, and the first goes on', async () => {
    const first = await startDaemon({ fake: true })
    try {
      const second = await startDaemon({ fake: true, folder: first.folder, mayFail: true })
      expect(await second.exited).toBe(5)
      expect(existsSync(first.socket)).toBe(true)
      expect(await first.client.call('system.status', {})).toEqual({ status: 'ok' })
    } finally {
      await clean(first)
    }
  }, 20_000)
})
