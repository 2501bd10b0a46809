import { afterAll, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Config } from '../../src/config.ts'
import { Fault } from '../../src/lib/fault.ts'
import { cachedDoctor, configOf, doctor } from '../../src/system/doctor.ts'

const home = mkdtempSync('/tmp/aerie-u-')
afterAll(() => {
  rmSync(home, { recursive: true, force: true })
})
const none = () => Promise.resolve([])
const messages = async (config: Config | Fault) =>
  (await doctor(none, config)).checks.map((check) => `${check.name}: ${check.message} ${check.hint ?? ''}`).join('\n')

test('the places are those of the daemon that would serve', async () => {
  const own = await messages(configOf('user', { HOME: home }, 1000))
  const host = await messages(configOf('system', { HOME: home }, 1000))

  expect(own).toContain(`state: ${home}/.local/state/aerie can be written`)
  expect(own).not.toContain('/var/lib')
  expect(host).toContain('/var/lib/aerie')
})

test('a user without a home is told so, and the rest is looked at all the same', async () => {
  const config = configOf('user', { HOME: 'x' }, 54_321)
  const { healthy, checks } = await doctor(none, config)

  expect(config).toBeInstanceOf(Fault)
  expect(healthy).toBe(false)
  expect(checks.find((check) => check.name === 'state')).toMatchObject({
    status: 'fail',
    message: expect.stringContaining('Cannot find the home of user 54321') as string,
    hint: expect.stringContaining('Set HOME') as string,
  })
  expect(checks.map((check) => check.name)).toContain('linux')
})

test('whoever asks while it looks, or soon after, has the same answer', async () => {
  mkdirSync(join(home, 'asked'))
  let asked = 0
  const ask = cachedDoctor(
    () => {
      asked++
      return none()
    },
    configOf('user', { HOME: join(home, 'asked') }, 1000) as Config,
  )

  const [one, two] = await Promise.all([ask(), ask()])

  expect(two).toBe(one)
  expect(await ask()).toBe(one)
  expect(asked).toBe(1)
})

test('nothing of it stops the loop that it runs on for long', async () => {
  let longest = 0
  let last = performance.now()
  const ticking = setInterval(() => {
    longest = Math.max(longest, performance.now() - last)
    last = performance.now()
  }, 1)
  await doctor(
    async () => {
      await Bun.sleep(20)
      return []
    },
    configOf('user', { HOME: home }, 1000),
  )
  clearInterval(ticking)

  expect(longest).toBeLessThan(100)
})

test('no program is waited for on the loop of a daemon', async () => {
  const sources = ['system/doctor.ts', 'hypervisor/drivers/talon/checks.ts', 'hypervisor/drivers/qemu/qemu.ts']
  for (const file of sources)
    expect(await Bun.file(join(import.meta.dir, '../../src', file)).text()).not.toContain('spawnSync')
})
