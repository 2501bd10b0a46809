import { expect, test } from 'bun:test'
import { isInItself, planCopy, type Source } from '../../src/cli/commands/vm/copy-plan.ts'
import { Fault } from '../../src/lib/fault.ts'

const FILE: Source = { isFolder: false, name: 'f', contentOnly: false }
const FOLDER: Source = { isFolder: true, name: 'd', contentOnly: false }
const CONTENT: Source = { isFolder: true, name: 'd', contentOnly: true }
/** What stands at the target's side: folders end with a slash. */
const THERE = ['/', '/dir/', '/dir/sub/', '/file']

/** The rules of docker cp, a line a case: what is copied, to what, and where its top goes, or the fault. */
const cases: readonly (readonly [string, Source, string, string])[] = [
  ['a file', FILE, '/new', '/ new'],
  ['a file', FILE, '/file', '/ file'],
  ['a file', FILE, '/dir', '/dir f'],
  ['a file', FILE, '/dir/', '/dir f'],
  ['a file', FILE, '/dir/.', '/dir f'],
  ['a file', FILE, '/dir//sub/../sub', '/dir/sub f'],
  ['a file', FILE, '/', '/ f'],
  ['a file', FILE, '/new/', 'target_missing'],
  ['a file', FILE, '/file/', 'target_missing'],
  ['a file', FILE, '/no/new', 'target_missing'],
  ['a file', FILE, '/file/new', 'target_missing'],
  ['a folder', FOLDER, '/new', '/ new'],
  ['a folder', FOLDER, '/new/', '/ new'],
  ['a folder', FOLDER, '/dir', '/dir d'],
  ['a folder', FOLDER, '/dir/', '/dir d'],
  ['a folder', FOLDER, '/', '/ d'],
  ['a folder', FOLDER, '/file', 'target_no_folder'],
  ['a folder', FOLDER, '/no/new', 'target_missing'],
  ["a folder's content", CONTENT, '/new', '/ new'],
  ["a folder's content", CONTENT, '/dir', '/dir '],
  ["a folder's content", CONTENT, '/', '/ '],
  ["a folder's content", CONTENT, '/file', 'target_no_folder'],
]

test.each(cases)('%s (%j) to "%s" goes to "%s"', async (_, source, target, expected) => {
  const look = (path: string) => {
    const isFolder = THERE.includes(path.endsWith('/') ? path : `${path}/`)
    return Promise.resolve({ exists: isFolder || THERE.includes(path), is_dir: isFolder })
  }

  const got = await planCopy(source, target, look, 'there').then(
    ({ folder, as }) => `${folder} ${as}`,
    (error: unknown) => (error instanceof Fault ? error.code : String(error)),
  )

  expect(got).toBe(expected)
})

test.each([
  ['/f', '/', 'f', true],
  ['/d', '/d', '', true],
  ['/d', '/d', 'd', true],
  ['/d', '/d/sub', 'd', true],
  ['/', '/x', 'y', true],
  ['/d', '/', 'dd', false],
  ['/d/sub', '/d', 'other', false],
  ['/d/f', '/e', 'f', false],
])('a copy of %s to %s/%s is one into itself: %p', (source, folder, as, expected) => {
  expect(isInItself(source, { folder, as })).toBe(expected)
})
