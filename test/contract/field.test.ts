import { expect, test } from 'bun:test'
import { Type } from '@sinclair/typebox'
import { flagLines, parseFlags } from '../../src/cli/flags.ts'
import { schemaFlags } from '../../src/cli/schema-flags.ts'
import { operations } from '../../src/contract/operations.ts'
import { defaulted, fill } from '../../src/contract/schema.ts'
import { fieldsOf, showSpec, specOf, VmCreate, VmFields } from '../../src/contract/vm-spec.ts'
import { openapi } from '../../src/http/openapi.ts'

/** `vm.create` as it would be after one line in its schema. */
const wider = Type.Object(
  {
    ...VmCreate.properties,
    swap_mb: defaulted(Type.Integer({ minimum: 0, maximum: 4096, description: 'Swap, MiB' }), 2048),
    nested: defaulted(Type.Boolean({ description: 'Virtualization in the guest' }), false),
    boot_timeout_s: Type.Optional(Type.Integer({ minimum: 1, maximum: 600, description: 'How long a boot may take' })),
    sysctls: Type.Optional(
      Type.Record(Type.String({ pattern: '^[a-z.]+$' }), Type.String(), { description: 'A sysctl' }),
    ),
    init: Type.Optional(Type.Array(Type.String(), { description: 'Another init' })),
    machine: Type.Optional(Type.Union([Type.Literal('q35'), Type.Literal('microvm')], { description: 'Board' })),
  },
  { additionalProperties: false },
)

test('a field that is added to a schema is a flag, its help and a field of the body', () => {
  const { flags, said } = schemaFlags(wider, { omit: ['env'] })
  const line =
    '--swap 1g --nested --boot-timeout 1m30s --sysctls a.b=1 --sysctls c.d=2 --init ["a","b"] --machine q35 --memory 64m'
  const { values } = parseFlags(flags, line.split(' '), { verb: 'create', command: false, argsMax: 0 })

  expect(said(values)).toEqual({
    memory_mb: 64,
    swap_mb: 1024,
    nested: true,
    boot_timeout_s: 90,
    sysctls: { 'a.b': '1', 'c.d': '2' },
    init: ['a', 'b'],
    machine: 'q35',
  })
  expect(said({})).toEqual({})
  const help = flagLines(flags).map((one) => one.replaceAll(/\s+/g, ' ').trim())
  for (const one of [
    '--swap SIZE Swap (2g)',
    '--nested Virtualization in the guest',
    '--boot-timeout TIME How long a boot may take',
    '--sysctls KEY=VALUE A sysctl; may be repeated',
    '--init PROGRAM Another init',
    '--machine q35|microvm Board',
  ])
    expect(help).toContain(one)
  for (const wrong of ['--swap 5g', '--boot-timeout 11m', '--machine pc', '--sysctls x'])
    expect(() => parseFlags(flags, wrong.split(' '), { verb: 'create', command: false, argsMax: 0 })).toThrow('Cannot')
})

test('and is in the description of the API, once', () => {
  const document = JSON.parse(
    JSON.stringify(openapi('0', { 'vm.create': { ...operations['vm.create'], body: { ...wider, $id: 'VmCreate' } } })),
  ) as { components: { schemas: Record<string, { properties: object; required?: string[] }> } }

  expect(document.components.schemas['VmCreate']?.properties).toMatchObject({
    swap_mb: { type: 'integer', minimum: 0, maximum: 4096, description: 'Swap, MiB', default: 2048 },
    boot_timeout_s: { type: 'integer', description: 'How long a boot may take' },
  })
  expect(document.components.schemas['VmCreate']?.required).toBeUndefined()
})

test('a field of a new vm is in one group of its specification, and comes back out of it', () => {
  const fields = fill(VmFields, {
    network: { mode: 'vsock' },
    cmd: ['x'],
    port: 80,
    env: JSON.parse('{"__proto__": "x", "A": "1"}') as object,
  })
  const spec = specOf(fields)

  expect(fieldsOf(spec)).toEqual(fields)
  expect(Object.keys(fieldsOf(spec)).sort()).toEqual(
    Object.keys(fields)
      .filter((name) => (fields as Record<string, unknown>)[name] !== undefined)
      .sort(),
  )
  expect(Object.keys(spec.workload.env)).toEqual(['__proto__', 'A'])
  const shown = showSpec(spec) as Record<string, unknown>
  expect(shown).toMatchObject({ cpu_cores: 1, memory_mb: 512, port: 80, cmd: ['x'], entrypoint: null, metadata: {} })
  for (const hidden of ['env', 'hold', 'workdir', 'user']) expect(hidden in shown).toBe(false)
})

test('a default is filled where a field is left out, and nothing that was said is changed', () => {
  const schema = Type.Object({
    a: defaulted(Type.Integer(), 3),
    list: defaulted(Type.Array(Type.String()), []),
    inner: Type.Optional(Type.Object({ b: defaulted(Type.Boolean(), true) })),
  })
  const first = fill(schema, {})
  first.list.push('x')

  expect(fill(schema, {})).toEqual({ a: 3, list: [] }) // a default is nobody's to share
  expect(fill(schema, { a: 0, list: ['y'], inner: {} })).toEqual({ a: 0, list: ['y'], inner: { b: true } })
})
