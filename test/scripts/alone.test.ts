import { afterAll, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { Glob } from 'bun'

const ROOT = join(import.meta.dir, '../..')
const folder = mkdtempSync('/tmp/aerie-u-')
afterAll(() => {
  rmSync(folder, { recursive: true, force: true })
})

/** Runs a script from a folder of its own, in a shell that has sourced nothing and knows no Bun. */
const alone = (line: string) => {
  const [script = '', ...args] = line.split(' ')
  const ran = Bun.spawnSync([join(ROOT, 'scripts', script), ...args], {
    cwd: folder,
    env: { HOME: process.env['HOME'] ?? '/root', PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
  })
  return { code: ran.exitCode, out: ran.stdout.toString(), err: ran.stderr.toString() }
}

test.each([
  ['licenses', 0, /Apache License/, ''],
  ['ext4-template here.ext4', 0, /^/, 'here.ext4'],
  ['base-image here/base', 0, /^/, 'here/base/bin/busybox'],
  ['kernel --print', 0, /kernels\/fast-[0-9a-f]{16}\n$/, ''],
])(
  'scripts/%s finds what it needs by itself, from any folder',
  (line, code, out, made) => {
    const ran = alone(line)

    expect({ code: ran.code, err: ran.err }).toEqual({ code, err: '' })
    expect(ran.out).toMatch(out)
    if (made !== '') expect(existsSync(join(folder, made))).toBe(true)
  },
  60_000,
)

test.each(['build --nonsense', 'format --nonsense', 'test nonsense'])(
  'scripts/%s is refused with a word',
  (line) => {
    expect(alone(line)).toMatchObject({ code: 2, err: expect.stringContaining('nonsense') as string })
  },
  60_000,
)

test('every script that uses Bun or Cargo sets them up', () => {
  const wrong = [...new Glob('{*,bench/*}').scanSync(join(ROOT, 'scripts'))].filter((file) => {
    const text = readFileSync(join(ROOT, 'scripts', file), 'utf8')
    const lines = text.split('\n').filter((line) => !line.startsWith('#') || line.startsWith('#!'))
    const uses = text.startsWith('#!') && lines.some((line) => /(^|\s|\()(bun|cargo|rustc) /.test(line))
    return uses && file !== 'setup' && !/\. (scripts\/setup|"\$\(dirname .*setup")/.test(lines.join('\n'))
  })

  expect(wrong).toEqual([])
})
