import { Type, type Static } from '@sinclair/typebox'
import { defaulted, named } from './schema.ts'
import { oneOf, operation, Timestamp } from './operation.ts'
import { ONE_VM, VmRef } from './vm-ref.ts'

export const LogSource = oneOf('app', 'console', 'vmm', 'agent', 'all')
export const LogLine = named(
  'LogLine',
  Type.Object({
    name: Type.String(),
    source: Type.String(),
    stream: Type.String(),
    line: Type.String(),
    encoding: Type.Optional(Type.Literal('base64', { description: 'The line is no UTF-8: its bytes in base64' })),
    partial: Type.Optional(
      Type.Literal(true, {
        description: 'The line has no end yet, or is longer than 1 MiB and goes on in the next one',
      }),
    ),
    timestamp: Type.Union([Timestamp, Type.Null()]),
  }),
)
export type LogLine = Static<typeof LogLine>
export const LogQuery = Type.Object({
  source: Type.Optional(LogSource),
  tail: Type.Optional(
    Type.Integer({ minimum: 0, maximum: 1_000_000, description: 'Only the last lines; all where absent' }),
  ),
  follow: defaulted(Type.Boolean(), false),
  since: Type.Optional(Type.String({ maxLength: 64, description: 'RFC 3339, or a duration back from now (5m)' })),
})
export type LogQuery = Static<typeof LogQuery>

export const logOperations = {
  'vm.logs': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/logs',
    detail: { tags: ['vm'], summary: 'Logs as server-sent events, one LogLine each' },
    params: VmRef,
    query: LogQuery,
    response: {},
    faults: [...ONE_VM, 'since_invalid'],
    scope: 'read',
    stream: 'sse',
  }),
} as const
