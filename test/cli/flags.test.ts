import { describe, expect, test } from 'bun:test'
import { VmCreate } from '../../src/contract/vm-spec.ts'
import {
  bySchema,
  duration,
  flagLines,
  integer,
  list,
  mebibytes,
  parseFlags,
  text,
  word,
  yes,
  type Flags,
} from '../../src/cli/flags.ts'
import { parseForward } from '../../src/cli/commands/vm/forward-spec.ts'
import { parsePlace } from '../../src/cli/commands/vm/copy-plan.ts'
import { splitName } from '../../src/cli/cli.ts'
import { distance, suggest } from '../../src/cli/suggest.ts'
import { detachFilter } from '../../src/cli/stay.ts'
import { readArgv } from '../../src/cli/schema-flags.ts'
import { VM_FLAGS } from '../../src/cli/vm-flags.ts'
import { readEnv } from '../../src/cli/guest-flags.ts'
import { Fault } from '../../src/lib/fault.ts'

const FLAGS = {
  memory: mebibytes('', 64, 1024 * 1024, { short: 'm' }),
  env: list('', 'K=V', { short: 'e' }),
  interactive: yes('', { short: 'i' }),
  tty: yes('', { short: 't' }),
  stopTimeout: duration('', 3600_000),
  name: text('', 'NAME', { aliases: ['called'] }),
  format: word(['json', 'yaml'], '', { short: 'o' }),
  count: integer('', 1, 10, { short: 'n' }),
} satisfies Flags
const parse = (line: string, how: { command?: boolean; argsMax?: number } = {}) =>
  parseFlags(FLAGS, line === '' ? [] : line.split(' '), {
    verb: 'run',
    command: how.command ?? false,
    argsMax: how.argsMax ?? 1,
  })
const faultOf = (work: () => unknown): Fault => {
  try {
    work()
  } catch (error) {
    if (error instanceof Fault) return error
    throw error
  }
  throw new Error('expected a fault')
}

describe('flags are read', () => {
  test.each([
    ['', {}, [], undefined],
    ['--memory 512m a', { memory: 512 }, ['a'], undefined],
    ['--memory=1g a', { memory: 1024 }, ['a'], undefined],
    ['-m 2g -m512m', { memory: 512 }, [], undefined],
    ['-m=100', { memory: 100 }, [], undefined],
    ['-it a', { interactive: true, tty: true }, ['a'], undefined],
    ['-itm64m a', { interactive: true, tty: true, memory: 64 }, ['a'], undefined],
    ['--no-tty a', { tty: false }, ['a'], undefined],
    ['--tty=false --no-interactive=true', { tty: false, interactive: false }, [], undefined],
    ['-e A=1 -eB=2 --env C', { env: ['A=1', 'B=2', 'C'] }, [], undefined],
    ['--stop-timeout 1m30s', { stopTimeout: 90_000 }, [], undefined],
    ['--called x', { name: 'x' }, [], undefined],
    ['-ojson -n 3', { format: 'json', count: 3 }, [], undefined],
    ['--name -x', { name: '-x' }, [], undefined],
    ['- a', {}, ['-', 'a'], undefined],
    ['a -- -m --x', {}, ['a'], ['-m', '--x']],
    ['--', {}, [], []],
  ] as const)('%s', (line, values, args, rest) => {
    expect(parse(line)).toEqual({ values, args: [...args], rest: rest === undefined ? undefined : [...rest] })
  })

  test.each([
    ['base uname -a', {}, ['uname', '-a']],
    ['base -- uname -a', {}, ['uname', '-a']],
    ['base -m 1g uname -m', { memory: 1024 }, ['uname', '-m']],
    ['-t base sh -- -c', { tty: true }, ['sh', '--', '-c']],
    ['base', {}, undefined],
  ] as const)("ours end where the guest's command begins: %s", (line, values, rest) => {
    expect(parse(line, { command: true })).toEqual({
      values,
      args: ['base'],
      rest: rest === undefined ? undefined : [...rest],
    })
  })

  test('flags of every command may stand before its name', () => {
    expect(splitName(['-o', 'json', '--host', 'x', 'vm', 'list', '-q'])).toEqual({
      before: ['-o', 'json', '--host', 'x'],
      words: ['vm', 'list'],
      after: ['-q'],
    })
    expect(splitName(['--output=json', 'ps'])).toEqual({ before: ['--output=json'], words: ['ps'], after: [] })
    expect(splitName(['image', 'x'])).toEqual({ before: [], words: ['image'], after: ['x'] })
  })
})

describe('flags are refused', () => {
  test.each([
    ['--memroy 1g', 'Cannot use flag "--memroy" of run: there is no such flag', 'Did you mean "--memory"?'],
    ['--zzzzzz', 'Cannot use flag "--zzzzzz" of run: there is no such flag', 'See "aerie help run"'],
    ['-x', 'Cannot use flag "-x" of run: there is no such flag', 'See "aerie help run"'],
    ['-ix', 'Cannot use flag "-x" of run: there is no such flag', 'See "aerie help run"'],
    ['--memory', 'Cannot use --memory: it needs a value', 'See "aerie help run"'],
    ['--memory -- x', 'Cannot use --memory: it needs a value', 'See "aerie help run"'],
    ['--memory lots', 'Cannot use --memory "lots": expected a size like 512m or 2g', undefined],
    ['--memory 1m', 'Cannot use --memory "1m": expected 64m to 1024g', undefined],
    ['--memory -1', 'Cannot use --memory "-1": expected a size like 512m or 2g', undefined],
    [
      '--memory 99999999999999999999',
      'Cannot use --memory "99999999999999999999": expected a size like 512m or 2g',
      undefined,
    ],
    ['--tty=perhaps', 'Cannot use --tty "perhaps": expected true or false', undefined],
    ['--stop-timeout soon', 'Cannot use --stop-timeout "soon": expected a time like 30s, 5m or 500ms', undefined],
    ['--stop-timeout 2h', 'Cannot use --stop-timeout "2h": expected at most 3600s', undefined],
    ['-o jsno', 'Cannot use -o "jsno": expected json, yaml; did you mean "json"?', undefined],
    ['-n 0', 'Cannot use -n "0": expected a whole number from 1 to 10', undefined],
    ['-n 1.5', 'Cannot use -n "1.5": expected a whole number from 1 to 10', undefined],
    ['-n 1e1', 'Cannot use -n "1e1": expected a whole number from 1 to 10', undefined],
  ] as const)('%s', (line, sentence, hint) => {
    expect(faultOf(() => parse(line))).toMatchObject({
      code: 'usage_invalid',
      kind: 'invalid',
      message: sentence,
      hint,
    })
  })

  test("one that looks like the guest's says where those stand", () => {
    expect(faultOf(() => parse('base -c', { command: true })).hint).toBe(
      'What belongs to the guest\'s command stands after "--"',
    )
  })
})

describe('a flag of a schema', () => {
  test('has its bounds, its default and its words', () => {
    const cpus = bySchema(VmCreate.properties.cpu_cores)
    const driver = bySchema(VmCreate.properties.hypervisor)
    const name = bySchema(VmCreate.properties.name)

    expect(cpus.help).toBe('Virtual CPUs (1)')
    expect(cpus.read('4', undefined)).toBe(4)
    expect(() => cpus.read('65', undefined)).toThrow('from 1 to 64')
    expect(driver.words).toEqual(['qemu', 'talon', 'fake'])
    expect(() => driver.read('qemo', undefined)).toThrow('did you mean "qemu"?')
    expect(() => name.read('Up', undefined)).toThrow('a-z, 0-9')
    expect(() => name.read('a'.repeat(64), undefined)).toThrow('at most 63')
  })

  test('and all others show in help, each on its line', () => {
    expect(
      flagLines({
        memory: mebibytes('Memory', 1, 2, { short: 'm' }),
        env: list('Variable', 'K=V'),
        gone: yes('', { hidden: true }),
      }),
    ).toEqual(['  -m, --memory SIZE  Memory', '      --env K=V      Variable; may be repeated'])
  })
})

test.each([
  ['80', { host: '127.0.0.1', port: 80 }, { port: 80 }],
  ['8080:80', { host: '127.0.0.1', port: 8080 }, { port: 80 }],
  ['0:80', { host: '127.0.0.1', port: 0 }, { port: 80 }],
  ['0.0.0.0:8080:80', { host: '0.0.0.0', port: 8080 }, { port: 80 }],
  ['[::1]:8080:80', { host: '::1', port: 8080 }, { port: 80 }],
  ['/tmp/x.sock:80', { unix: '/tmp/x.sock' }, { port: 80 }],
  ['5432:/run/db.sock', { host: '127.0.0.1', port: 5432 }, { unix: '/run/db.sock' }],
  ['/a:/b', { unix: '/a' }, { unix: '/b' }],
] as const)('the forward %s is understood', (said, local, remote) => {
  expect(parseForward(said)).toEqual({ local, remote })
})

test.each([
  '',
  'x',
  '0',
  '65536',
  '8080:0',
  '70000:80',
  '/tmp/x.sock',
  'host:80',
  '1:2:3:4',
  '80:',
  ':80',
  '80:x',
  '::1:80:80',
])('the forward "%s" is refused', (said) => {
  expect(faultOf(() => parseForward(said)).code).toBe('usage_invalid')
})

test.each([
  ['web:/etc', { vm: 'web', path: '/etc' }],
  ['web:etc', { vm: 'web', path: '/etc' }],
  ['./a:b', { vm: undefined, path: './a:b' }],
  ['/a:b', { vm: undefined, path: '/a:b' }],
  ['-', { vm: undefined, path: '-' }],
  ['plain', { vm: undefined, path: 'plain' }],
  [':x', { vm: undefined, path: ':x' }],
] as const)('the place %s is understood', (said, place) => {
  expect(parsePlace(said)).toEqual(place)
})

test('an entry point is one program, a JSON array, or nothing', () => {
  expect([readArgv('sh'), readArgv('["sh","-c"]'), readArgv('')]).toEqual([['sh'], ['sh', '-c'], []])
  const entrypoint = (text: string) => () =>
    parseFlags(VM_FLAGS, ['--entrypoint', text], { verb: 'run', command: false, argsMax: 0 })
  expect(faultOf(entrypoint('[1]')).message).toContain('a JSON array of strings')
  expect(faultOf(entrypoint('[')).message).toContain('a JSON array of strings')
})

test('metadata and variables need names', () => {
  const labels = (...said: string[]) =>
    parseFlags(
      VM_FLAGS,
      said.map((one) => `--metadata=${one}`),
      { verb: 'run', command: false, argsMax: 0 },
    ).values
  expect(labels('a=b=c', 'd=')).toEqual({ metadata: { a: 'b=c', d: '' } })
  expect(faultOf(() => labels('a')).code).toBe('usage_invalid')
  expect(readEnv({ env: ['A=1', 'B', 'C'] }, { B: 'own' })).toEqual({ A: '1', B: 'own' })
  expect(faultOf(() => readEnv({ env: ['=x'] }, {})).code).toBe('usage_invalid')
  expect(faultOf(() => readEnv({ envFile: ['/no/such/file'] }, {})).message).toContain(
    'Cannot read the environment file',
  )
})

test('what was meant is near what was typed', () => {
  expect([
    distance('run', 'rnu'),
    distance('', 'abc'),
    distance('same', 'same'),
    distance('kitten', 'sitting'),
  ]).toEqual([1, 3, 0, 3])
  expect([
    suggest('rnu', ['run', 'rm']),
    suggest('insp', ['inspect', 'image']),
    suggest('zzz', ['run']),
    suggest('st', ['stop', 'start']),
  ]).toEqual(['run', 'inspect', undefined, undefined])
})

test('^P ^Q is found wherever the reads cut it, and nothing else is lost', () => {
  const type = (...reads: string[]) => {
    const filter = detachFilter()
    let passed = ''
    for (const read of reads) {
      const { bytes, detach } = filter(Buffer.from(read, 'latin1'))
      passed += Buffer.from(bytes).toString('latin1')
      if (detach) return [passed, 'left']
    }
    return [passed, 'stayed']
  }

  expect(type('ab\x10\x11cd')).toEqual(['ab', 'left'])
  expect(type('ab\x10', '\x11')).toEqual(['ab', 'left'])
  expect(type('\x10x')).toEqual(['\x10x', 'stayed'])
  expect(type('\x10', 'x')).toEqual(['\x10x', 'stayed'])
  expect(type('\x10\x10\x11')).toEqual(['\x10', 'left'])
  expect(type('\x11')).toEqual(['\x11', 'stayed'])
})
