import { Type, type Static } from '@sinclair/typebox'
import { oneOf } from './operation.ts'
import { defaulted } from './schema.ts'

/**
 * What narrows and orders a list of vms; apart from the vm, since the command that is typed most needs no more of it.
 */
export const VmListQuery = Type.Object({
  status: Type.Optional(Type.String({ description: 'Comma list of states' })),
  runtime: Type.Optional(Type.String()),
  plugin: Type.Optional(Type.String()),
  q: Type.Optional(Type.String({ maxLength: 128, description: 'Part of the name' })),
  metadata: Type.Optional(
    Type.Union([Type.String(), Type.Array(Type.String())], { description: 'key=value, repeatable, all must match' }),
  ),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000 })),
  offset: defaulted(Type.Integer({ minimum: 0 }), 0),
  sort: Type.Optional(oneOf('id', 'name', 'status', 'runtime', 'created_at', 'updated_at')),
  order: Type.Optional(oneOf('asc', 'desc')),
})
export type VmListQuery = Static<typeof VmListQuery>
