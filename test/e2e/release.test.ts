import { afterAll, describe, expect, test } from 'bun:test'
import { readFileSync, readdirSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { kvmSupport } from '../../src/linux/kvm.ts'
import { until } from './daemon.ts'

/** Made by `scripts/build --release`: with the fast kernel and the image `base` inside. */
const RELEASE = process.env['AERIE_TEST_RELEASE'] ?? ''
const EMPTY_ROOT = join(import.meta.dir, '../bed/empty-root')
const { usable, reason } = kvmSupport()
const missing = RELEASE === '' ? 'AERIE_TEST_RELEASE names no released file' : !usable ? reason : undefined

const proc = (pid: number, name: string): string => {
  try {
    return readFileSync(`/proc/${pid}/${name}`, 'utf8')
  } catch {
    return ''
  }
}
const talons = (): number[] =>
  readdirSync('/proc')
    .filter((one) => /^\d+$/.test(one))
    .map(Number)
    .filter((pid) => proc(pid, 'cmdline').startsWith('talon\0run\0'))

describe.skipIf(missing !== undefined)(
  `a released file${missing === undefined ? '' : ` (skipped: ${missing})`}`,
  () => {
    const children: Bun.Subprocess[] = []
    afterAll(() => {
      for (const child of children) child.kill('SIGKILL')
    })

    test('tells the kernel that it brings, how that was configured and where its source is', async () => {
      const { kernel, base } = JSON.parse((await cliOf(['version', '--contents', '-o', 'json'])).stdout) as {
        kernel: { version: string; source: string; modules: number }
        base: { name: string }
      }

      expect(kernel).toMatchObject({ version: expect.stringMatching(/^6\.12\.\d+-aerie$/) as unknown, modules: 0 })
      expect(kernel.source).toMatch(
        /https:\/\/snapshot\.debian\.org\/package\/linux\/\S+\nfragment sha256 [0-9a-f]{64}/,
      )
      expect(base.name).toBe('base')
      expect((await cliOf(['version', '--kernel-config'])).stdout).toContain('CONFIG_VMGENID=y\n')
    })

    test('alone in an empty root boots a guest on KVM, jailed, and runs a command in it', async () => {
      const child = Bun.spawn(
        [EMPTY_ROOT, RELEASE, 'run', '-i', 'base', '--', 'sh', '-c', 'uname -a; read line; echo "$line"; exit 7'],
        { stdin: 'pipe', stdout: 'pipe', stderr: 'pipe', env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' } },
      )
      children.push(child)
      let said = ''
      let complained = ''
      const reading = Promise.all([
        (async () => {
          for await (const part of child.stdout) said += Buffer.from(part).toString()
        })(),
        (async () => {
          for await (const part of child.stderr) complained += Buffer.from(part).toString()
        })(),
      ])
      await Promise.race([until(() => said.includes('\n'), 150), child.exited])
      if (child.exitCode !== null) throw new Error(`it ended with ${child.exitCode}: ${complained}`)

      expect(said).toMatch(/^Linux \S+ 6\.12\.\d+-aerie .* x86_64 GNU\/Linux\n$/)
      // what was there: the file, the C library, and nothing else
      expect(complained.split('\n').filter((line) => line.startsWith('./'))).toEqual([
        './aerie',
        ...['libc.so.6', 'libdl.so.2', 'libm.so.6', 'libpthread.so.0'].map((name) => `./lib/x86_64-linux-gnu/${name}`),
        './lib64/ld-linux-x86-64.so.2',
      ])
      const [talon = 0, ...more] = talons()
      expect(more).toEqual([])
      expect(proc(talon, 'status')).toMatch(/^NoNewPrivs:\t1\nSeccomp:\t2$/m)
      expect(proc(talon, 'status')).toMatch(/^CapEff:\t0{16}$/m)
      expect(readdirSync(`/proc/${talon}/root`)).toEqual(['vsock'])
      for (const kind of ['user', 'mnt', 'net', 'pid', 'ipc'])
        expect(readlinkSync(`/proc/${talon}/ns/${kind}`)).not.toBe(readlinkSync(`/proc/self/ns/${kind}`))

      child.stdin.write('thanks\n')
      await child.stdin.end()
      await reading
      expect(await child.exited).toBe(7)
      expect(said).toEndWith('\nthanks\n')
      await until(() => talons().length === 0)
    }, 240_000)
  },
)

const cliOf = async (args: readonly string[]): Promise<{ readonly code: number; readonly stdout: string }> => {
  const child = Bun.spawn([RELEASE, ...args], { cwd: '/', env: {}, stdout: 'pipe', stderr: 'inherit' })
  return { stdout: await new Response(child.stdout).text(), code: await child.exited }
}
