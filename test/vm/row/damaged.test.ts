import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync } from 'node:fs'
import { sql, type SQL } from 'drizzle-orm'
import { adoptAll } from '../../../src/vm/adopt.ts'
import { remove } from '../../../src/vm/delete.ts'
import { all, byUid, find } from '../../../src/vm/row/lookup.ts'
import { list } from '../../../src/vm/row/list.ts'
import { start } from '../../../src/vm/start.ts'
import { stop } from '../../../src/vm/stop.ts'
import { DIGEST, testHost, type TestHost } from '../host.ts'

const DAMAGE: readonly (readonly [string, SQL, string])[] = [
  [
    'a specification that is no JSON',
    sql`UPDATE vms SET spec = '{"image": "secret' WHERE name = 'bad'`,
    'spec is no JSON',
  ],
  [
    'a specification of another shape',
    sql`UPDATE vms SET spec = json_set(spec, '$.cpu_cores', 'many') WHERE name = 'bad'`,
    'at /cpu_cores',
  ],
  ['a specification that is a list', sql`UPDATE vms SET spec = '[]' WHERE name = 'bad'`, 'column spec'],
  ['a state that is none', sql`UPDATE vms SET state = 'zombie' WHERE name = 'bad'`, 'column state'],
  [
    'a machine that is none',
    sql`UPDATE boots SET machine = '{"process": 1}' WHERE vm_uid = (SELECT uid FROM vms WHERE name = 'bad')`,
    'column machine',
  ],
  ['no boot at all', sql`DELETE FROM boots WHERE vm_uid = (SELECT uid FROM vms WHERE name = 'bad')`, 'it has no boot'],
]

let bed: TestHost
beforeEach(() => {
  bed = testHost()
})
afterEach(async () => {
  await bed[Symbol.asyncDispose]()
})

describe.each(DAMAGE)('a vm whose record has %s', (_, damage, reason) => {
  let uid: string
  beforeEach(() => {
    bed.vm('first', { state: 'stopped' }, { metadata: { team: 'red' } })
    const bad = bed.vm('bad', { state: 'stopped' }, { metadata: { team: 'red' } })
    bed.vm('last', { state: 'stopped' }, { metadata: { team: 'red' } })
    ;({ uid } = bad)
    mkdirSync(bed.paths(bad).folder, { recursive: true })
    bed.host.store.run(damage)
  })

  test('is shown as unknown with the reason, and costs no other vm anything', () => {
    const { store } = bed.host

    const shown = list(store, {}).vms
    expect(shown.map(({ name, status }) => [name, status])).toEqual([
      ['first', 'stopped'],
      ['bad', 'unknown'],
      ['last', 'stopped'],
    ])
    expect(shown[1]?.status_message).toContain(`its record is damaged: `)
    expect(shown[1]?.status_message).toContain(reason)
    expect(JSON.stringify(shown)).not.toContain('secret')
    expect(list(store, { metadata: 'team=red' }).vms.map(({ name }) => name)).toContain('last')
    expect(all(store).length).toBe(3)
    expect([find(store, 'last').name, find(store, 'bad', 'read').state, byUid(store, uid)?.state]).toEqual([
      'last',
      'unknown',
      'unknown',
    ])
  })

  test('is not changed by a verb nor by the start of a daemon, and is deleted when that is asked', async () => {
    await adoptAll(bed.host)
    for (const verb of [start, stop])
      await expect(verb(bed.host, 'bad', {})).rejects.toMatchObject({
        code: 'vm_damaged',
        message: expect.stringContaining(reason) as unknown,
      })
    const { folder } = bed.paths(find(bed.host.store, 'bad', 'read'))
    expect(existsSync(folder)).toBe(true)

    await remove(bed.host, 'bad')

    expect(list(bed.host.store, {}).vms.map(({ name }) => name)).toEqual(['first', 'last'])
    expect(existsSync(folder)).toBe(false)
  })
})

test('an image whose record is damaged is shown as failed, and is not used', () => {
  const { images, store } = bed.host
  store.run(sql`UPDATE images SET config = '{"cmd": "sh"}' WHERE digest = ${DIGEST}`)

  expect(images.list().map(({ status }) => status)).toEqual(['failed'])
  for (const use of [() => images.resolve('base'), () => images.byDigest(DIGEST)])
    expect(use).toThrow(expect.objectContaining({ code: 'image_damaged' }) as Error)
})

test('a kernel whose modules cannot be read is shown, and found', () => {
  const { kernels, store } = bed.host
  store.run(sql`UPDATE kernels SET modules = 'none' WHERE digest = ${DIGEST}`)

  expect(kernels.list().map(({ name, modules }) => [name, modules])).toEqual([['k', []]])
  expect(kernels.byDigest(DIGEST).name).toBe('k')
})
