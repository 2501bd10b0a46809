import { describe, expect, test } from 'bun:test'
import { candidates, FILES } from '../../src/cli/candidates.ts'
import { COMMANDS, findEntry } from '../../src/cli/commands.ts'
import type { Programs } from '../../src/cli/command.ts'
import type { ArgumentNoun } from '../../src/cli/nouns.ts'
import { FakeDaemon } from '../client/daemon.ts'
import { aerie, envOf, PROGRAM } from './aerie.ts'

const programs: Programs = {
  version: '0',
  serve: () => Promise.resolve(0),
  settings: () => Promise.resolve({}),
  terminal: () => Promise.resolve(undefined),
  contents: () => Promise.resolve({ kernel: null, kernelConfig: '', base: null }),
  licenses: () => Promise.resolve(''),
  doctor: () => Promise.resolve({ healthy: true, checks: [] }),
}
const names = (noun: ArgumentNoun) =>
  Promise.resolve(noun === 'vm' ? ['web', 'db'] : noun === 'image' ? ['alpine', 'base'] : [])
const complete = (line: string) => candidates(line.split(' '), programs, names)

describe('after these words may follow', () => {
  test.each([
    ['ru', ['run']],
    ['vm st', ['start', 'stop', 'standby', 'stats', 'stat']],
    ['image ', ['import', 'ls', 'inspect', 'rm']],
    ['stop ', ['web', 'db']],
    ['stop w', ['web']],
    ['run ', ['alpine', 'base']],
    ['run --memory 1g b', ['base']],
    ['run --netw', ['--network-bandwidth-download', '--network-bandwidth-upload', '--network']],
    ['run --network ', ['vsock', 'user']],
    ['ps -o j', ['json']],
    ['run base ', [FILES]],
    ['run base -- ', [FILES]],
    ['cp ', ['web:', 'db:']],
    ['cp ./', [FILES]],
    ['image import x ', [FILES]],
    ['run --env-file ', [FILES]],
    ['exec web ', [FILES]],
    ['inspect web ', ['web', 'db']],
    ['ps --al', ['--all']],
    ['--ho', ['--host']],
    ['--host ', []],
    ['nonsense ', []],
    ['completion ', ['bash']],
    ['help sta', ['start', 'standby', 'stats']],
  ] as const)('%s', async (line, expected) => {
    expect(await complete(line)).toEqual([...expected])
  })
})

test('bash has the names of the daemon', async () => {
  await using daemon = new FakeDaemon()
  daemon.add({ name: 'web' })
  daemon.add({ name: 'worker' })
  const script = `aerie() { ${PROGRAM.join(' ')} "$@"; }; eval "$(aerie completion bash)"; COMP_WORDS=(aerie stop w); COMP_CWORD=2; _aerie; printf '%s\\n' "\${COMPREPLY[@]}"`

  const child = Bun.spawn(['bash', '-c', script], { env: envOf(daemon), stdout: 'pipe', stderr: 'inherit' })

  expect((await new Response(child.stdout).text()).trim().split('\n')).toEqual(['web', 'worker'])
})

test('a daemon that does not answer holds no shell up', async () => {
  await using daemon = new FakeDaemon(() => new Promise<Response>(() => undefined))

  const startedAt = performance.now()
  const said = await aerie(['__complete', '--', 'stop', ''], daemon)

  expect(said).toMatchObject({ code: 0, out: '' })
  expect(performance.now() - startedAt).toBeLessThan(3000)
})

test('every command has help that names its flags, and its words are one of a kind', async () => {
  const all = COMMANDS.flatMap((entry) => [...entry.names, ...(entry.also ?? [])])
  expect(new Set(all).size).toBe(all.length)
  for (const entry of COMMANDS) {
    const command = await entry.load()
    expect(entry.summary).not.toEndWith('.')
    for (const [key, flag] of Object.entries(command.flags))
      if (flag.hidden !== true) expect(`${key}: ${flag.help}`).toMatch(/: .{3}/)
    const shorts = Object.values(command.flags).flatMap((flag) => flag.short ?? [])
    expect(new Set(shorts).size).toBe(shorts.length)
  }
})

test('every noun knows every word for list, delete and inspect', async () => {
  for (const noun of ['vm', 'image', 'kernel', 'token']) {
    for (const [first, ...others] of [
      ['list', 'ls'],
      ['delete', 'rm'],
      ['inspect', 'show', 'get'],
    ] as const) {
      const entry = findEntry(`${noun} ${first}`)
      expect(entry?.load).toBeDefined()
      for (const other of others) expect(findEntry(`${noun} ${other}`)).toBe(entry)
    }
  }
  expect(findEntry('list')).toBe(findEntry('ls'))
  expect(findEntry('delete')).toBe(findEntry('rm'))
  expect(findEntry('show')).toBe(findEntry('inspect'))
})

test.each(['vm ls', 'vm list', 'ls', 'list'])('%s lists vms, and with a name what is in one', async (name) => {
  await using daemon = new FakeDaemon()
  daemon.add({ name: 'web' })

  expect((await aerie([...name.split(' '), '-q'], daemon)).out).toBe('web\n')
  expect((await aerie([...name.split(' '), 'web', '/', '-o', 'json'], daemon)).out).toBe('[]\n')
})
