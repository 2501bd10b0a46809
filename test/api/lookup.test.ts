import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { clean, cli, haveBinary, seedFake, startDaemon, type Daemon } from '../e2e/daemon.ts'
import { ask, type Ask } from './http.ts'

/** Which vm a verb takes, as the daemon of the built file answers it on the driver that runs nothing. */
describe.skipIf(!haveBinary)('a verb takes the vm that is named, and no other', () => {
  let daemon: Daemon
  let beginning = ''
  /** The beginning of the uids of both. */
  let both = ''
  beforeAll(async () => {
    daemon = await startDaemon({ fake: true })
    await seedFake(daemon)
    // Numbers grow with time, so vms that are made together begin alike.
    for (const name of ['web', 'web-prod'])
      await daemon.client.call('vm.create', { body: { name, image: 'base', cmd: ['sleep', '600'] } })
    const [one, two] = await daemon.client.call('vm.list', { query: {} })
    beginning = one?.uid.slice(0, -1) ?? ''
    both = one?.uid.slice(0, 7) ?? ''
    expect(two?.uid.startsWith(both)).toBe(true)
    expect(two?.uid.startsWith(beginning)).toBe(false)
  }, 60_000)
  afterAll(async () => {
    await clean(daemon)
  })

  const at = (name: string, verb: string, method = 'POST', body?: string): Ask => ({
    method,
    path: `/api/v1/vms/${name}${verb}`,
    ...(body !== undefined && { body }),
  })
  const CHANGES: readonly (readonly [string, string, string | undefined])[] = [
    ['', 'DELETE', undefined],
    ['/stop', 'POST', undefined],
    ['/start', 'POST', undefined],
    ['/restart', 'POST', undefined],
    ['/pause', 'POST', undefined],
    ['/resume', 'POST', undefined],
    ['/standby', 'POST', undefined],
    ['/restore', 'POST', undefined],
    ['/files?path=/', 'PUT', 'x'],
  ]

  test.each(CHANGES)('%s %s not by the beginning of a uid or of a name', async (verb, method, body) => {
    for (const name of [beginning, 'web-p', 'vm', 'vm_', 'WEB']) {
      const { status, json } = await ask({ socketPath: daemon.socket }, at(name, verb, method, body))
      expect([name, status, json['code']]).toEqual([name, 404, 'vm_not_found'])
    }
    expect((await daemon.client.call('vm.list', { query: {} })).map((vm) => vm.status)).toEqual(['running', 'running'])
  })

  test.each(['rm -f', 'stop', 'standby', 'restart'])('the command %s neither', async (verb) => {
    for (const name of [beginning, 'web-p', 'vm']) {
      const said = await cli(daemon, [...verb.split(' '), name])
      expect([said.code, said.stdout]).toEqual([4, ''])
      expect(said.stderr).toStartWith(`aerie: Cannot find vm "${name}"\n  hint: `)
    }
    expect((await daemon.client.call('vm.list', { query: {} })).map((vm) => vm.status)).toEqual(['running', 'running'])
  })

  test.each([
    ['rm', '@'],
    ['rm -f', '@'],
    ['cp /etc/hostname', '@:/'],
    ['cp -', '@:/'],
    ['cp web:/etc', '@:/'],
  ])('the command %s %s takes no beginning that fits two vms, or one', async (verb, target) => {
    for (const name of [both, beginning]) {
      const said = await cli(daemon, [...verb.split(' '), target.replace('@', name)])
      expect([said.code, said.stdout]).toEqual([4, ''])
      expect(said.stderr).toStartWith(`aerie: Cannot find vm "${name}"\n  hint: Did you mean "web"`)
    }
    expect((await daemon.client.call('vm.list', { query: {} })).map((vm) => vm.status)).toEqual(['running', 'running'])
  })

  test.each([
    'exec @ true',
    'exec -t @ true',
    'attach @',
    'console @',
    'forward @ 0:80',
    'logs @',
    'logs -f @',
    'wait @',
  ])('%s says which vm is not there', async (words) => {
    for (const [name, code] of [
      ['nope', 4],
      ['vm_', 4],
      [both, 5],
    ] as const) {
      const said = await cli(daemon, words.replace('@', name).split(' '))
      expect([name, said.code]).toEqual([name, words.startsWith('exec') || words.startsWith('attach') ? 125 : code])
      expect(said.stderr).toStartWith(`aerie: Cannot ${code === 4 ? 'find vm' : 'tell which vm'} "${name}"`)
    }
  })

  test('a look takes the beginning of a uid, and not of a name', async () => {
    expect((await ask({ socketPath: daemon.socket }, at(beginning, '', 'GET'))).json['name']).toBe('web')
    const { json } = await ask({ socketPath: daemon.socket }, at('web-p', '', 'GET'))
    expect(json).toMatchObject({ code: 'vm_not_found', hint: 'Did you mean "web-prod"?' })
  })

  test.each(['14', '0', '007'])('no vm is named %s', async (name) => {
    const made = await ask(
      { socketPath: daemon.socket },
      {
        method: 'POST',
        path: '/api/v1/vms',
        body: JSON.stringify({ name, image: 'base' }),
      },
    )
    const forked = await ask({ socketPath: daemon.socket }, at('web', '/fork', 'POST', JSON.stringify({ name })))

    expect([made.status, made.json['code'], forked.status, forked.json['code']]).toEqual([
      400,
      'request_invalid',
      400,
      'request_invalid',
    ])
  })
})
