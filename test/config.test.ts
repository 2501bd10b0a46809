import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { readConfig } from '../src/config.ts'
import { Fault } from '../src/lib/fault.ts'

let folder: string
beforeAll(() => {
  folder = mkdtempSync('/tmp/aerie-u-')
})
afterAll(() => {
  rmSync(folder, { recursive: true })
})

let files = 0
const file = (text: string): string => {
  const path = join(folder, `${++files}.toml`)
  writeFileSync(path, text)
  return path
}
/** Where no file is named, none is read: the host may have one. */
const none = () => file('')
const faultOf = (flags: Record<string, unknown>, env: Record<string, string> = {}): Fault => {
  try {
    readConfig({ config: none(), ...flags }, env, 0)
  } catch (error) {
    if (error instanceof Fault) return error
    throw error
  }
  throw new Error('it was taken')
}

describe('a setting', () => {
  test('has its default', () => {
    expect(readConfig({ config: none() }, {}, 0)).toMatchObject({
      mode: 'system',
      state: '/var/lib/aerie',
      run: '/run/aerie',
      socket: '/run/aerie/aerie.sock',
      listen: '',
      listen_insecure: false,
      socket_group: 'aerie',
      accelerator: 'auto',
      cpu_oversubscription: 4,
      memory_limit_mb: 0,
      boot_timeout_s: 120,
      log_level: 'info',
      idle_exit_s: 0,
      disk_io_bps: 268_435_456,
      disk_flushes_per_s: 500,
      landlock_abi_min: 0,
      jail: true,
    })
  })

  test('comes from the file before the default, from the environment before the file, from the flags before all', () => {
    const config = file('boot_timeout_s = 1\nlog_max_mb = 1\nlog_level = "warn"\n')

    const read = readConfig({ config, log_level: 'error' }, { AERIE_LOG_MAX_MB: '2', AERIE_LOG_LEVEL: 'debug' }, 0)

    expect(read).toMatchObject({ boot_timeout_s: 1, log_max_mb: 2, log_level: 'error', idle_exit_s: 0 })
  })

  test('of the environment is read as its type, and an empty one is none', () => {
    expect(
      readConfig(
        { config: none() },
        { AERIE_JAIL: 'false', AERIE_CPU_OVERSUBSCRIPTION: '1.5', AERIE_MEMORY_LIMIT_MB: '4096', AERIE_LISTEN: '' },
        0,
      ),
    ).toMatchObject({ jail: false, cpu_oversubscription: 1.5, memory_limit_mb: 4096, listen: '' })
  })

  test("that nothing knows is not taken from the environment: others' variables begin with AERIE_ too", () => {
    expect(
      readConfig({ config: none() }, { AERIE_HOST: 'unix:///x', AERIE_TOKEN: 'x', AERIE_MACHINE: 'x' }, 0),
    ).not.toHaveProperty('host')
  })
})

describe('a value that does not fit names its place', () => {
  const WRONG: readonly (readonly [string, Record<string, unknown>, Record<string, string>, string, RegExp])[] = [
    ['a flag out of bounds', { boot_timeout_s: '0' }, {}, 'the flags', /boot_timeout_s/],
    ['a flag of the wrong type', { boot_timeout_s: 'soon' }, {}, 'the flags', /boot_timeout_s/],
    ['an unknown flag', { boots: 1 }, {}, 'the flags', /boots/],
    ['a word that is none of the choices', { hypervisor: 'xen' }, {}, 'the flags', /hypervisor/],
    ['a variable of the wrong type', {}, { AERIE_MEMORY_LIMIT_MB: 'much' }, 'the environment', /memory_limit_mb/],
    ['a variable that is none of the choices', {}, { AERIE_LOG_LEVEL: 'loud' }, 'the environment', /log_level/],
  ]
  for (const [name, flags, env, origin, reason] of WRONG) {
    test(name, () => {
      const fault = faultOf(flags, env)

      expect(fault).toMatchObject({ code: 'config_invalid', kind: 'invalid' })
      expect(fault.message).toStartWith(`Cannot use the configuration of ${origin}: `)
      expect(fault.message).toMatch(reason)
    })
  }

  test('a file with a mistake is named, and its mistake', () => {
    const typo = file('boot_timout_s = 3\n')
    const broken = file('listen = \n')
    const missing = join(folder, 'missing.toml')

    expect(faultOf({ config: typo }).message).toContain(`${typo}: boot_timout_s`)
    expect(faultOf({ config: broken }).message).toContain(broken)
    expect(faultOf({ config: missing })).toMatchObject({ code: 'config_invalid', data: { origin: missing } })
  })

  test('the file that the environment names must be there too', () => {
    expect(() => readConfig({}, { AERIE_CONFIG: join(folder, 'missing.toml') }, 0)).toThrow('missing.toml')
  })

  test('a folder that is not absolute is refused by its name', () => {
    expect(faultOf({ state: 'here' }).message).toBe(
      'Cannot use the configuration of state: "here" is not an absolute path',
    )
    expect(faultOf({ run: './run' }).data['origin']).toBe('run')
    expect(faultOf({ socket: 'aerie.sock' }).data['origin']).toBe('socket')
  })

  test('an address without a port is refused, one with it is kept', () => {
    for (const listen of [
      '127.0.0.1',
      '127.0.0.1:',
      '127.0.0.1:99999',
      '127.0.0.1:http',
      '::1:80',
      '[::1]',
      'http://127.0.0.1:80',
      '7777',
    ])
      expect({ listen, origin: faultOf({ listen }).data['origin'] }).toEqual({ listen, origin: 'listen' })
    for (const listen of ['', '127.0.0.1:7777', '[::1]:7777', 'localhost:0'])
      expect(readConfig({ config: none(), listen }, {}, 0).listen).toBe(listen)
  })

  test('a runtime folder whose sockets would have no name is refused before anything is made', () => {
    const deep = `/tmp/${'x'.repeat(100)}`

    expect(faultOf({ state: deep }).message).toContain('too long for Unix sockets')
    expect(faultOf({ run: deep }).message).toContain('choose a shorter folder with --run')
    expect(readConfig({ config: none(), state: deep, run: '/run/a' }, {}, 0).state).toBe(deep)
  })
})

describe('the folders', () => {
  test('stand under the state folder where only that is named', () => {
    expect(readConfig({ config: none(), state: '/srv/a' }, {}, 0)).toMatchObject({
      state: '/srv/a',
      run: '/srv/a/run',
      socket: '/srv/a/run/aerie.sock',
    })
  })

  test('of the machines last where a runtime folder was named, and those of an older release stay', () => {
    const [state, run] = [join(folder, 'l'), join(folder, 'named')]
    const machines = () => readConfig({ config: none(), state, run }, {}, 0).machines
    mkdirSync(join(run, 'm'), { recursive: true })

    expect(machines()).toBe(join(state, 'run/m'))
    mkdirSync(join(run, 'm/1'))
    expect(machines()).toBe(join(run, 'm'))
    expect(readConfig({ config: none() }, {}, 0).machines).toBe('/run/aerie/m')
    expect(readConfig({ config: none(), state: `/srv/${'x'.repeat(80)}`, run: '/run/a' }, {}, 0).machines).toBe(
      '/run/a/m',
    )
  })

  test("are the user's own with --user, and its file stands under XDG_CONFIG_HOME", () => {
    const config = readConfig(
      { user: true },
      { HOME: folder, XDG_CONFIG_HOME: join(folder, 'none'), XDG_RUNTIME_DIR: '/run/user/7' },
      7,
    )

    expect(config).toMatchObject({ mode: 'user', state: join(folder, '.local/state/aerie'), run: '/run/user/7/aerie' })
    expect(readConfig({ config: none() }, { AERIE_USER: 'true', HOME: folder }, 7).mode).toBe('user')
  })

  test('a configuration is frozen', () => {
    expect(Object.isFrozen(readConfig({ config: none() }, {}, 0))).toBe(true)
  })
})
