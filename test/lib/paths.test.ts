import { expect, test } from 'bun:test'
import { ensureFolder } from '../../src/lib/folder.ts'
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { systemPlaces, userPlaces } from '../../src/lib/paths.ts'

test("the system's daemon stands where design.md says", () => {
  expect(systemPlaces).toEqual({
    mode: 'system',
    state: '/var/lib/aerie',
    run: '/run/aerie',
    socket: '/run/aerie/aerie.sock',
  })
})

test("a user's daemon stands in the XDG folders, or in their defaults", () => {
  expect(
    userPlaces({ HOME: '/home/ann', XDG_STATE_HOME: '/data/state', XDG_RUNTIME_DIR: '/run/user/1000' }, 1000),
  ).toEqual({
    mode: 'user',
    state: '/data/state/aerie',
    run: '/run/user/1000/aerie',
    socket: '/run/user/1000/aerie/aerie.sock',
  })
  expect(userPlaces({ HOME: '/home/ann' }, 1000)).toMatchObject({
    state: '/home/ann/.local/state/aerie',
    run: '/tmp/aerie-1000',
  })
})

test('an empty variable is none: XDG says so', () => {
  expect(userPlaces({ HOME: '/home/ann', XDG_STATE_HOME: '', XDG_RUNTIME_DIR: '' }, 1000)).toMatchObject({
    state: '/home/ann/.local/state/aerie',
    run: '/tmp/aerie-1000',
  })
})

test('a service that has no HOME has places all the same', () => {
  expect(userPlaces({}, 0)).toMatchObject({ state: '/root/.local/state/aerie', run: '/tmp/aerie-0' })
  expect(userPlaces({}, 7)).toMatchObject({ state: '/.local/state/aerie', run: '/tmp/aerie-7' })
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
