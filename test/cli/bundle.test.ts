import { expect, test } from 'bun:test'
import { join } from 'node:path'
import { NO_HOME, aerie } from './aerie.ts'
import { VERSION } from '../../src/version.ts'
import { EXIT } from '../../src/cli/exit.ts'

const MAIN = join(import.meta.dir, '../../src/main.ts')

test('what --version loads is small, and nothing but our own first file', async () => {
  const built = await Bun.build({
    entrypoints: [MAIN],
    target: 'bun',
    format: 'esm',
    splitting: true,
    minify: { syntax: true, whitespace: true },
  })
  const text = new Map(
    await Promise.all(
      built.outputs.map(async (output) => [output.path.replace(/^\.\//, ''), await output.text()] as const),
    ),
  )
  const first = built.outputs.find((output) => output.kind === 'entry-point')?.path.replace(/^\.\//, '') ?? ''

  // The static imports, and theirs: what `import()` names is not loaded.
  const loaded = new Set<string>()
  const visit = (name: string): void => {
    if (loaded.has(name)) return
    loaded.add(name)
    const source = text.get(name) ?? ''
    for (const [, path = ''] of source.matchAll(/(?:from|import)\s*"(\.\/[^"]+)"/g)) visit(path.slice(2))
  }
  visit(first)
  const bytes = [...loaded].reduce((sum, name) => sum + (text.get(name)?.length ?? 0), 0)

  expect(text.size).toBeGreaterThan(20) // it is split at all
  expect(bytes).toBeLessThan(16 * 1024)
  for (const name of loaded) expect(text.get(name)).not.toMatch(/typebox|elysia|drizzle|pino|\bky\b/i)
})

test.each([
  ['--version', `aerie ${VERSION}\n`],
  ['-V', `aerie ${VERSION}\n`],
  ['version --short', `${VERSION}\n`],
])('%s says the version', async (line, said) => {
  expect(await aerie(line.split(' '))).toMatchObject({ code: 0, out: said, err: '' })
})

test('every kind of fault has its own exit code, apart from those of the shell and of the guest', () => {
  const codes = Object.values(EXIT)

  expect(EXIT).toMatchObject({
    invalid: 2,
    not_found: 4,
    conflict: 5,
    exhausted: 6,
    unavailable: 7,
    timeout: 8,
    internal: 70,
  })
  for (const code of codes) expect(code > 1 && code < 124).toBe(true)
})

test('version says that no daemon answers, and is no error', async () => {
  const said = await aerie(['version'], { env: { HOME: NO_HOME, XDG_RUNTIME_DIR: '/nonexistent', AERIE_HOST: 'user' } })

  expect(said.code).toBe(0)
  expect(said.out).toMatch(/Daemon: +none answers/)
})

test('without a command there is help', async () => {
  expect((await aerie([])).out).toContain('Usage: aerie COMMAND')
  expect((await aerie(['--help'])).code).toBe(0)
  expect((await aerie(['help', 'run'])).out).toContain('--memory SIZE')
  expect((await aerie(['run', '--help'])).out).toContain('--memory SIZE')
  expect((await aerie(['vm', '--help'])).out).toContain('vm create')
})

test('serve has the settings as its flags', async () => {
  const { out } = await aerie(['serve', '--help'])

  for (const flag of [
    '--config FILE',
    '--user',
    '--idle-exit-s N',
    '--listen TEXT',
    '--log-level trace|debug|info|warn|error|silent',
  ])
    expect(out).toContain(flag)
})
