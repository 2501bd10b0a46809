import { expect, test } from 'bun:test'
import { FakeDaemon } from '../client/daemon.ts'
import { aerie, Typist } from './aerie.ts'

const EVIL = 'a\x1b[2Jb\u009b31mc\x7fd\x1b]0;t\x07e\rf\u0090g\u009c'
const NOT_OBEYED = /[\x00-\x09\x0b-\x1f\x7f-\x9f]/

const lines = (...all: readonly object[]): Response =>
  new Response(all.map((one) => `data: ${JSON.stringify(one)}\n\n`).join(''), {
    headers: { 'content-type': 'text/event-stream' },
  })

/** A daemon that says whatever a guest has told it. */
const evilDaemon = () => {
  const daemon = new FakeDaemon((_, path) => {
    if (path.endsWith('/logs'))
      return lines({
        source: path.includes('web') ? 'agent' : 'console',
        stream: 'stdout',
        timestamp: null,
        line: EVIL,
      })
    if (path.endsWith('/start')) return Response.json({ title: EVIL, code: 'x', hint: EVIL }, { status: 409 })
    if (path === '/api/v1/events')
      return lines({ seq: 1, type: 'VM_CRASHED', name: EVIL, message: EVIL, timestamp: '2026-01-01T00:00:00.000Z' })
    return undefined
  })
  const vm = daemon.add({ name: 'web', cmd: [EVIL], image: EVIL })
  Object.assign(vm, { status_message: EVIL, exit_message: EVIL, metadata: { x: EVIL } })
  daemon.add({ name: 'db' })
  return daemon
}

test.each([
  'ps',
  'ps -o json',
  'ps -o yaml',
  'ls',
  'inspect web',
  'inspect web -o json',
  'inspect web -o yaml',
  'inspect web db',
  'start web',
  'start web -o json',
  'start web db -o json',
  'logs --source agent web',
  'logs --source console db',
  'logs --source agent web -o json',
  'logs --source console db -o yaml',
  'events --no-follow',
  'events --no-follow -o json',
  'events --no-follow -o yaml',
])('nothing that a guest said reaches a terminal as more than text: %s', async (line) => {
  await using daemon = evilDaemon()

  const said = await aerie(line.split(' '), daemon)

  expect(said.out + said.err).toContain('2J')
  expect(said.out).not.toMatch(NOT_OBEYED)
  expect(said.err).not.toMatch(NOT_OBEYED)
})

test('what is printed as JSON or YAML is the value itself all the same', async () => {
  await using daemon = evilDaemon()

  for (const format of ['json', 'yaml']) {
    const { out } = await aerie(['inspect', 'web', '-o', format], daemon)
    expect((Bun.YAML.parse(out) as { image: string }).image).toBe(EVIL)
  }
})

test('the output of the workload itself is as it was', async () => {
  await using daemon = new FakeDaemon((_, path) =>
    path.endsWith('/logs') ? lines({ source: 'app', stream: 'stdout', timestamp: null, line: EVIL }) : undefined,
  )
  daemon.add({ name: 'web' })

  expect((await aerie(['logs', 'web'], daemon)).out).toBe(`${EVIL}\n`)
})

test('an answer of the API is as it was in a pipe, and obeyed by no terminal', async () => {
  await using daemon = evilDaemon()
  const line = ['api', 'GET', 'vms/web/logs']
  using person = new Typist(line, { socket: daemon.socket })

  await person.exited

  expect(person.seen).toContain('2J')
  expect(person.seen.replaceAll('\r\n', '\n')).not.toMatch(NOT_OBEYED)
  expect((await aerie(line, daemon)).out).toContain('\u009b')
})
