import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { chmodSync, cpSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { clean, cli, createVm, haveBinary, newFolder, startDaemon, until, type Daemon } from './daemon.ts'

/** The tree that the base image is made of. */
const BASE = join(process.env['AERIE_CACHE'] ?? '', 'base')

/**
 * A generator of random numbers as crypto libraries have it, in machine code: a page of `MADV_WIPEONFORK`, filled by
 * getrandom(2) whenever it is zero, its first eight bytes written to the begin of stdout 50 times a second.
 */
const GENERATOR =
  'b80900000031ffbe00100000ba0300000041ba2200000049c7c0ffffffff4531c90f054889c3b81c0000004889df' +
  'be00100000ba120000000f0548833b007511b83e0100004889dfbe0800000031d20f05b812000000bf010000004889deba080000004531d20f05' +
  '68002d31016a00b8230000004889e731f60f054883c410ebb9'

/** An ELF64 executable for x86-64 of one segment, read and execute (elf(5)). */
const elf = (code: Uint8Array): Uint8Array => {
  const head = 120
  const base = 0x40_0000n
  const file = new Uint8Array(head + code.byteLength)
  const view = new DataView(file.buffer)
  const size = BigInt(file.byteLength)
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
  view.setUint16(16, 2, true)
  view.setUint16(18, 62, true)
  view.setUint32(20, 1, true)
  view.setBigUint64(24, base + BigInt(head), true)
  view.setBigUint64(32, 64n, true)
  view.setUint16(52, 64, true)
  view.setUint16(54, 56, true)
  view.setUint16(56, 1, true)
  view.setUint32(64, 1, true)
  view.setUint32(68, 5, true)
  for (const [index, value] of [0n, base, base, size, size, 4096n].entries())
    view.setBigUint64(72 + index * 8, value, true)
  file.set(code, head)
  return file
}

const at = (name: string) => ({ params: { name } })

/**
 * One real guest of an image with something in every place that an agent writes to; it is restarted, halted, woken and
 * cloned.
 */
describe.skipIf(!haveBinary || BASE === 'base')('a guest that goes on', () => {
  let daemon: Daemon
  const say = async (name: string, script: string): Promise<string> => {
    const ran = await cli(daemon, ['exec', name, '--', 'sh', '-c', script])
    expect(ran).toMatchObject({ code: 0, stderr: '' })
    return ran.stdout.trim()
  }
  const behind = async (name: string): Promise<number> =>
    Date.now() / 1000 - Number(await say(name, 'date +%s')) /* a whole second less at most, and what exec takes */

  beforeAll(async () => {
    const folder = newFolder()
    chmodSync(folder, 0o711)
    const tree = join(folder, 'tree')
    cpSync(BASE, tree, { recursive: true, verbatimSymlinks: true })
    mkdirSync(join(tree, 'run/app'), { recursive: true })
    mkdirSync(join(tree, 'tmp'), { recursive: true })
    chmodSync(join(tree, 'run/app'), 0o750)
    writeFileSync(join(tree, 'tmp/of-image'), 'kept\n')
    writeFileSync(join(tree, 'etc/hostname'), 'build-host\n')
    writeFileSync(join(tree, 'etc/hosts'), '127.0.0.1 localhost')
    writeFileSync(join(tree, 'bin/generator'), elf(Buffer.from(GENERATOR, 'hex')), { mode: 0o755 })
    daemon = await startDaemon({ folder, flags: ['--cpu-oversubscription', '32'] })
    expect(await cli(daemon, ['image', 'import', 'tree', tree])).toMatchObject({ code: 0 })
    await createVm(daemon, { name: 'm', image: 'tree', memory_mb: 160, cmd: ['sleep', '100000'] })
  }, 240_000)
  afterAll(async () => {
    await clean(daemon)
  })

  test('finds /run and /tmp of the image, and on its disk what it left there before a restart', async () => {
    expect(await say('m', 'stat -c %a /run/app; cat /tmp/of-image; echo mine > /tmp/mine; sync')).toBe('750\nkept')

    expect((await cli(daemon, ['restart', 'm'])).code).toBe(0)

    expect(await say('m', 'stat -c %a /run/app; cat /tmp/of-image /tmp/mine')).toBe('750\nkept\nmine')
    expect(await say('m', 'cat /etc/hostname; grep -c -w m /etc/hosts')).toBe('m\n1')
  }, 240_000)

  test('has the right time after a pause', async () => {
    await daemon.client.call('vm.pause', at('m'))
    await Bun.sleep(4000) // the time that the guest does not see is what is tested

    await daemon.client.call('vm.resume', at('m'))

    expect(await behind('m')).toBeLessThan(3)
  }, 120_000)

  test('draws randomness of its own in every clone, and is woken with a root that cannot be written', async () => {
    await say('m', 'generator > /dev/shm/state & until test -s /dev/shm/state; do usleep 10000; done')
    const state = 'od -An -tx8 /dev/shm/state'
    const before = await say('m', state)

    const { vms, failed } = await daemon.client.call('vm.fork', { ...at('m'), body: { name: 'c', count: 2 } })

    expect(failed).toEqual([])
    const drawn = new Map<string, string>()
    for (const { name } of vms) {
      await until(async () => (await say(name, state)) !== before, 30)
      drawn.set(name, await say(name, state))
      expect(await behind(name)).toBeLessThan(3)
      expect(await say(name, `cat /etc/hostname; grep -c -w ${name} /etc/hosts`)).toBe(`${name}\n1`)
    }
    expect(new Set([before, ...drawn.values()]).size).toBe(3)
    expect(await say('m', state)).toBe(before) // the source ran on and was not woken from a file

    await say(
      'c-1',
      'rm /etc/hostname /etc/machine-id; mkfifo /etc/hostname; mkdir /etc/machine-id; mount -o remount,ro /',
    )
    expect((await daemon.client.call('vm.standby', at('c-1'))).status).toBe('standby')
    expect((await daemon.client.call('vm.restore', at('c-1'))).status).toBe('running')
    expect(await say('c-1', 'hostname; test -p /etc/hostname && echo same')).toBe('c-1\nsame')
    await until(async () => (await say('c-1', state)) !== drawn.get('c-1'), 30)
    expect((await cli(daemon, ['logs', '--source', 'agent', 'c-1'])).stdout).toContain('/etc/machine-id')
  }, 300_000)
})
