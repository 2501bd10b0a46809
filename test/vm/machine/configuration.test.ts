import { describe, expect, test } from 'bun:test'
import type { ImageConfig } from '../../../src/contract/image.ts'
import { fill } from '../../../src/contract/schema.ts'
import { specOf as grouped, type VmCreate, VmFields, type VmSpec } from '../../../src/contract/vm-spec.ts'
import { Networks } from '../../../src/network/networks.ts'
import { newLog } from '../../../src/lib/log.ts'
import { openStore } from '../../../src/store/open.ts'
import { argvOf, configure, fits } from '../../../src/vm/machine/configuration.ts'

const image = (config: Partial<ImageConfig> = {}): ImageConfig => ({
  entrypoint: [],
  cmd: [],
  env: [],
  user: '',
  working_dir: '',
  stop_signal: '',
  exposed_ports: [],
  ...config,
})
/** No vm here has a card of a network. */
const HOST = {
  networks: new Networks({
    store: openStore(':memory:'),
    config: { run: '/nowhere', state: '/nowhere', cpus: 1, cpu_oversubscription: 1 },
    stateId: '0',
    log: newLog('silent'),
    step: () => undefined,
  }),
}
const specOf = (want: VmCreate = {}): VmSpec => grouped(fill(VmFields, want))
const configured = (want: VmCreate = {}, config: Partial<ImageConfig> = {}) =>
  configure(HOST, { name: 'web', machineId: 'a'.repeat(32), spec: specOf(want) }, image(config))

describe("what a vm runs, by Docker's rules", () => {
  const CASES: readonly (readonly [string, VmCreate, Partial<ImageConfig>, string[]])[] = [
    ["the image's command", {}, { cmd: ['sh'] }, ['sh']],
    ["the image's entrypoint", {}, { entrypoint: ['nginx'] }, ['nginx']],
    ['both, the entrypoint first', {}, { entrypoint: ['nginx'], cmd: ['-g', 'x'] }, ['nginx', '-g', 'x']],
    [
      "the image's entrypoint with the request's command",
      { cmd: ['-v'] },
      { entrypoint: ['nginx'], cmd: ['-g'] },
      ['nginx', '-v'],
    ],
    [
      "the request's entrypoint without the image's command",
      { entrypoint: ['sh'] },
      { entrypoint: ['nginx'], cmd: ['-g'] },
      ['sh'],
    ],
    [
      "the request's entrypoint and command",
      { entrypoint: ['sh'], cmd: ['-c', 'id'] },
      { entrypoint: ['nginx'], cmd: ['-g'] },
      ['sh', '-c', 'id'],
    ],
    [
      "the image's command alone where the request empties the entrypoint and names it again",
      { entrypoint: [], cmd: ['sh'] },
      { entrypoint: ['nginx'], cmd: ['-g'] },
      ['sh'],
    ],
    [
      'nothing where the request empties the entrypoint',
      { entrypoint: [] },
      { entrypoint: ['nginx'], cmd: ['-g'] },
      [],
    ],
    [
      'the entrypoint alone where the request empties the command',
      { cmd: [] },
      { entrypoint: ['nginx'], cmd: ['-g'] },
      ['nginx'],
    ],
    ['nothing where nobody names anything', {}, {}, []],
  ]
  for (const [name, want, config, argv] of CASES) {
    test(name, () => {
      expect(argvOf(specOf(want).workload, image(config))).toEqual(argv)
      expect(configured(want, config).workload?.argv ?? []).toEqual(argv)
    })
  }

  test('a vm without a command has no workload: it stays up', () => {
    expect(configured().workload).toBeNull()
  })
})

describe('its environment', () => {
  const env = (want: VmCreate, config: Partial<ImageConfig> = {}) =>
    configured({ cmd: ['x'], ...want }, config).workload?.env

  test("is a path and its name, then the image's, then the request's", () => {
    expect(env({})).toEqual({ PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', HOSTNAME: 'web' })
    expect(env({ env: { B: 'mine', PATH: '/p' } }, { env: ['A=1', 'B=2', 'C=a=b=c', 'EMPTY='] })).toEqual({
      PATH: '/p',
      HOSTNAME: 'web',
      A: '1',
      B: 'mine',
      C: 'a=b=c',
      EMPTY: '',
    })
  })

  test("has a terminal's type where there is a terminal", () => {
    expect(env({ tty: true })).toMatchObject({ TERM: 'xterm-256color' })
    expect(env({ tty: true, env: { TERM: 'dumb' } })).toMatchObject({ TERM: 'dumb' })
  })

  test('takes nothing that is no pair from an image', () => {
    expect(env({}, { env: ['NOVALUE', '=x', 'A=1'] })).toEqual({
      PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
      HOSTNAME: 'web',
      A: '1',
    })
  })

  test('may have names that every object has', () => {
    expect(
      Object.entries(
        env({
          env: Object.fromEntries([
            ['__proto__', 'x'],
            ['constructor', 'y'],
          ]),
        }) ?? {},
      ),
    ).toEqual(
      expect.arrayContaining([
        ['constructor', 'y'],
        ['__proto__', 'x'],
      ]),
    )
  })
})

describe('the rest of it', () => {
  test('comes from the request before the image', () => {
    expect(configured({ cmd: ['x'] }, { user: 'web', working_dir: '/srv' }).workload).toMatchObject({
      user: 'web',
      cwd: '/srv',
    })
    expect(
      configured({ cmd: ['x'], user: '0', workdir: '/' }, { user: 'web', working_dir: '/srv' }).workload,
    ).toMatchObject({ user: '0', cwd: '/' })
    expect(configured({ cmd: ['x'] }).workload).toMatchObject({ user: '', cwd: '/', hold: false, tty: false })
  })

  test('has the stop signal of the image, however it is written', () => {
    const signals = ['SIGQUIT', 'QUIT', 'sigquit', '3', 'SIGUSR1', '', 'SIGNONSENSE', '0', '65', '-1'].map(
      (stop_signal) => configured({ cmd: ['x'] }, { stop_signal }).workload?.stop_signal,
    )

    expect(signals).toEqual([3, 3, 3, 3, 10, 15, 15, 15, 15, 15])
  })

  test('is new at every boot: secret and entropy are used once', () => {
    const [one, two] = [configured(), configured()]

    expect(one.secret).toMatch(/^[0-9a-f]{64}$/)
    expect(new Set([one.secret, two.secret, one.entropy, two.entropy]).size).toBe(4)
    expect(one).toMatchObject({
      hostname: 'web',
      machine_id: 'a'.repeat(32),
      root: { mode: 'overlay', overlay_size_bytes: 10_240 * 2 ** 20 },
      network: { mode: 'none' },
      grace_ms: 5000,
      shm_bytes: 64 * 2 ** 20,
    })
    expect(configured({ shm_size_mb: 1024 }).shm_bytes).toBe(2 ** 30)
    expect(configured().nics).toEqual([])
    expect(configured({ network: { mode: 'user' } })).toMatchObject({
      network: { mode: 'user' }, // for agents that know no list
      nics: [{ address: '10.0.2.15/24', gateway: '10.0.2.2', dns: ['10.0.2.3'] }],
    })
  })
})

test('what the agent would not take is refused when it is asked for', () => {
  const vm = (bytes: number) => ({
    name: 'web',
    machineId: 'a'.repeat(32),
    spec: specOf({ cmd: Array.from({ length: bytes / 1000 }, () => 'x'.repeat(997)) }),
  })

  fits(HOST, vm(16_000_000), image())
  expect(() => {
    fits(HOST, vm(17_000_000), image())
  }).toThrow(expect.objectContaining({ code: 'request_invalid', kind: 'invalid' }) as Error)
})
