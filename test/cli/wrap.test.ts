import { expect, test } from 'bun:test'
import { wrap } from '../../src/cli/wrap.ts'
import { FakeDaemon } from '../client/daemon.ts'
import { aerie, Typist } from './aerie.ts'

test.each([
  ['a short line', 'one two', 'one two'],
  ['text', 'one two three four five six seven', 'one two three four five\nsix seven'],
  ['text with an indent', '  one two three four five six', '  one two three four\n  five six'],
  ['a column', ' a  one two three four five six', ' a  one two three four\n    five six'],
  ['a word without room', 'abcdefghijklmnopqrstuvwxyz0123456789', 'abcdefghijklmnopqrstuvwx\nyz0123456789'],
  [
    'a word with places to break',
    '  --level trace|debug|info|warn|error',
    '  --level\n  trace|debug|info|warn|\n  error',
  ],
  ['empty lines', 'a\n\nb', 'a\n\nb'],
])('wraps %s', (_, text, wrapped) => {
  expect(wrap(text, 24)).toBe(wrapped)
})

test('nothing is wrapped where there is no terminal', async () => {
  const long = 'x '.repeat(100)

  expect(wrap(long, undefined)).toBe(long)
  expect((await aerie(['run', '--help'])).out.split('\n').some((line) => line.length > 100)).toBe(true)
})

test.each([
  ['run --help', 80],
  ['help', 60],
  ['help --all', 100],
  ['serve --help', 48],
  ['vm --help', 40],
])('%s is as wide as the terminal, and says every word', async (line, cols) => {
  await using daemon = new FakeDaemon()
  using person = new Typist(line.split(' '), { socket: daemon.socket, cols })
  await person.exited

  const words = (text: string) => text.replaceAll(/\x1b\[[0-9;]*m/g, '').replaceAll(/\s+/g, '')
  expect(Math.max(...person.seen.split('\r\n').map((one) => one.length))).toBeLessThanOrEqual(cols)
  expect(words(person.seen)).toBe(words((await aerie(line.split(' '))).out))
})
