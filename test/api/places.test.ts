import { afterAll, describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { AERIE, clean, createVm, haveBinary, newFolder, seedFake, startDaemon, until } from '../e2e/daemon.ts'

/** Removes what a cleaner of /tmp removes: whatever is no folder, and follows no link. */
const removeFiles = (folder: string): void => {
  for (const entry of readdirSync(folder, { withFileTypes: true }))
    if (entry.isDirectory()) removeFiles(join(folder, entry.name))
    else rmSync(join(folder, entry.name))
}

describe.skipIf(!haveBinary)('a socket that a cleaner took away', () => {
  test.each([
    ['the file', (_run: string, socket: string) => rmSync(socket)],
    ['its folder', (run: string) => rmSync(run, { recursive: true })],
    ['all files below it', (run: string) => removeFiles(run)],
  ])('comes back, and no vm is lost: %s', async (_, takeAway) => {
    const daemon = await startDaemon({ fake: true, flags: ['--idle-exit-s', '600'] }) // it looks twice a second then
    try {
      await seedFake(daemon)
      const vm = await createVm(daemon, { name: 'kept', cmd: ['sleep', '10000'] })
      const events = await fetch('http://aerie/api/v1/events', { unix: daemon.socket })

      takeAway(daemon.run, daemon.socket)
      await until(() => existsSync(daemon.socket))

      expect((await daemon.client.call('vm.list', { query: {} })).map((one) => one.uid)).toEqual([vm.uid])
      expect(events.body?.locked).toBe(false)
      const run = { params: { name: 'kept' }, body: { argv: ['echo', 'here'] } }
      expect(await daemon.client.call('vm.exec', run)).toMatchObject({ stdout: 'here\n' })
      await daemon.client.call('vm.restart', { params: { name: 'kept' }, body: { timeout_s: 0 } })
      expect(await daemon.client.call('vm.exec', run)).toMatchObject({ stdout: 'here\n' })
      await events.body?.cancel()
      await daemon.client.call('vm.delete', { params: { name: 'kept' } })
    } finally {
      await clean(daemon)
    }
  })
})

describe.skipIf(!haveBinary)('a home that is not there', () => {
  const folder = newFolder()
  afterAll(() => {
    rmSync(folder, { recursive: true, force: true })
  })
  const said = async (argv: readonly string[], env: Readonly<Record<string, string>>, user?: number) => {
    const cwd = join(folder, 'here')
    mkdirSync(cwd, { recursive: true, mode: 0o777 })
    const child = Bun.spawn(
      [
        ...(user === undefined ? [] : ['setpriv', '--reuid', String(user), '--regid', String(user), '--clear-groups']),
        AERIE,
        ...argv,
      ],
      { cwd, env: { PATH: process.env['PATH'] ?? '', ...env }, stdin: 'ignore', stdout: 'pipe', stderr: 'pipe' },
    )
    const [out, err] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])
    return { code: await child.exited, out, err, made: readdirSync(cwd) }
  }

  test.each([
    ['run base -- true', 125],
    ['create base', 7],
    ['serve --user', 7],
  ])('is said in one sentence, and nothing is made where one stands: %s', async (line, code) => {
    for (const env of [{}, { HOME: '' }, { HOME: 'home' }, { HOME: 'x', XDG_STATE_HOME: 'state' }]) {
      const it = await said(line.split(' '), env, 54_321)

      expect(it.err).toStartWith('aerie: Cannot find the home of user 54321: HOME is ')
      expect([it.code, it.err.split('\n').length, it.made]).toEqual([code, 3, []])
    }
  })

  test('is no matter where it is not needed', async () => {
    for (const line of ['version --short', 'help', 'version']) {
      const it = await said(line.split(' '), { HOME: '' }, 54_321)
      expect([it.code, it.err, it.made]).toEqual([0, '', []])
    }
  })
})
