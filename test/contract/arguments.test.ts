import { expect, test } from 'bun:test'
import type { TSchema } from '@sinclair/typebox'
import { ARGUMENTS_JSON_MAX } from '../../src/contract/guest.ts'
import type { Operation } from '../../src/contract/operation.ts'
import { operations } from '../../src/contract/operations.ts'
import { readBody } from '../../src/http/read.ts'

const ARGUMENTS = new Set(['argv', 'cmd', 'entrypoint'])
const all = Object.entries(operations as Readonly<Record<string, Operation>>)
const carriesArguments = ({ body }: Operation): boolean =>
  Object.keys((body?.['properties'] ?? {}) as Record<string, TSchema>).some((name) => ARGUMENTS.has(name))

/** 2 MiB of arguments of one sort. */
const SORTS = {
  letters: 'x'.repeat(131_000),
  'line ends': '\n'.repeat(131_000),
  'control characters': '\u0001'.repeat(131_000),
  'quotes and backslashes': '"\\'.repeat(65_500),
} as const

test('create, start and exec carry arguments, and nothing else does', () => {
  expect(all.filter(([, operation]) => carriesArguments(operation)).map(([id]) => id)).toEqual([
    'vm.create',
    'vm.start',
    'vm.exec',
  ])
})

for (const [id, operation] of all) {
  if (!carriesArguments(operation)) continue
  for (const [sort, word] of Object.entries(SORTS)) {
    test(`${id} takes all the arguments that Linux takes: ${sort}`, async () => {
      const words = Array.from({ length: 16 }, () => word)
      const body = JSON.stringify(id === 'vm.exec' ? { argv: words } : { cmd: words })
      const request = new Request('http://aerie/', { method: 'POST', body })

      expect(await readBody(operation, request)).toMatchObject(JSON.parse(body) as object)
      expect(operation.bodyMax).toBe(ARGUMENTS_JSON_MAX)
    })
  }
}
