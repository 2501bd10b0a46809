import { expect, test } from 'bun:test'
import { ensureFolder } from '../../src/lib/folder.ts'
import { mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { homeOf, systemPaths, userConfigFile, userPaths } from '../../src/lib/paths.ts'

test("the system's daemon stands where design.md says", () => {
  expect(systemPaths).toEqual({
    mode: 'system',
    state: '/var/lib/aerie',
    run: '/run/aerie',
    socket: '/run/aerie/aerie.sock',
  })
})

test("a user's daemon stands in the XDG folders, or in their defaults", () => {
  expect(
    userPaths({ HOME: '/home/ann', XDG_STATE_HOME: '/data/state', XDG_RUNTIME_DIR: '/run/user/1000' }, 1000),
  ).toEqual({
    mode: 'user',
    state: '/data/state/aerie',
    run: '/run/user/1000/aerie',
    socket: '/run/user/1000/aerie/aerie.sock',
  })
})

test('without a runtime folder its sockets stand in the state folder, and not in /tmp, where what is old is taken away', () => {
  expect(userPaths({ HOME: '/home/ann' }, 1000)).toMatchObject({
    state: '/home/ann/.local/state/aerie',
    run: '/home/ann/.local/state/aerie/run',
  })
})

test.each([
  ['empty', { HOME: '/home/ann', XDG_STATE_HOME: '', XDG_RUNTIME_DIR: '' }],
  ['relative', { HOME: '/home/ann', XDG_STATE_HOME: 'state', XDG_RUNTIME_DIR: './run', XDG_CONFIG_HOME: '..' }],
  ['a tilde', { HOME: '/home/ann', XDG_STATE_HOME: '~/state', XDG_CONFIG_HOME: '~' }],
])('a variable that is %s is none: XDG says so', (_, env) => {
  expect(userPaths(env, 1000)).toMatchObject({
    state: '/home/ann/.local/state/aerie',
    run: '/home/ann/.local/state/aerie/run',
  })
  expect(userConfigFile(env, 1000)).toBe('/home/ann/.config/aerie/aerie.toml')
})

test.each([
  ['unset', {}],
  ['empty', { HOME: '' }],
  ['relative', { HOME: 'home' }],
  ['a dot', { HOME: '.' }],
])('where HOME is %s the user database says the home', (_, env) => {
  expect(homeOf(env, 0)).toBe('/root')
  expect(userPaths(env, 0).state).toBe('/root/.local/state/aerie')
})

test.each([
  ['of no user that is known', 54_321],
  ['that is not there', 65_534],
])('a home %s is said in one sentence that names the variable', (_, uid) => {
  expect(() => userPaths({ HOME: 'x' }, uid)).toThrow(`Cannot find the home of user ${uid}: HOME is "x"`)
  expect(() => homeOf({}, uid)).toThrow('HOME is not set')
  expect(userPaths({ XDG_STATE_HOME: '/data' }, uid).state).toBe('/data/aerie')
  expect(userConfigFile({}, uid)).toBeUndefined()
})

test('a state folder too long for sockets has them elsewhere, and not where somebody else has been', () => {
  const HOME = `/${'long/'.repeat(20)}home`
  const uid = 900_000 + process.pid // nobody's, so that these names in /tmp are this test's own
  const first = `/tmp/aerie-${uid}`
  expect(userPaths({ HOME, XDG_RUNTIME_DIR: '/run/user/7' }, 7).run).toBe('/run/user/7/aerie')
  expect(userPaths({ HOME, XDG_RUNTIME_DIR: `/${'x'.repeat(80)}` }, uid).run).toBe(first)
  try {
    mkdirSync(first) // ours, and so another user's for that uid
    symlinkSync('/root', `${first}-1`)

    expect(userPaths({ HOME }, uid).run).toBe(`${first}-2`)
  } finally {
    rmSync(first, { recursive: true })
    rmSync(`${first}-1`)
  }
})

test('a folder has the mode that it was asked for, whatever the umask, also when it was there', () => {
  const base = mkdtempSync('/tmp/aerie-u-')
  const before = process.umask(0o077)
  try {
    ensureFolder(join(base, 'a/b'), 0o711)
    expect(statSync(join(base, 'a/b')).mode & 0o7777).toBe(0o711)
    ensureFolder(join(base, 'a/b'), 0o700)
    expect(statSync(join(base, 'a/b')).mode & 0o7777).toBe(0o700)
  } finally {
    process.umask(before)
    rmSync(base, { recursive: true })
  }
})

test('a runtime folder in which somebody else has taken the name is passed by', () => {
  const base = mkdtempSync('/tmp/aerie-u-')
  const env = { HOME: '/home/ann', XDG_RUNTIME_DIR: base }
  const uid = process.getuid?.() ?? 0
  try {
    expect(userPaths(env, uid).run).toBe(join(base, 'aerie'))
    mkdirSync(join(base, 'aerie'), { mode: 0o700 })
    expect(userPaths(env, uid).run).toBe(join(base, 'aerie'))

    expect(userPaths(env, uid + 1).run).toBe('/home/ann/.local/state/aerie/run')
    rmSync(join(base, 'aerie'), { recursive: true })
    symlinkSync('/root', join(base, 'aerie'))
    expect(userPaths(env, uid).run).toBe('/home/ann/.local/state/aerie/run')
  } finally {
    rmSync(base, { recursive: true })
  }
})
