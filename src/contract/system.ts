import { Type, type Static } from '@sinclair/typebox'
import { defaulted, named } from './schema.ts'
import { Nothing, oneOf, operation, Timestamp } from './operation.ts'

const tags = ['system'] as const
const Count = Type.Integer({ minimum: 0 })

export const SystemInfo = named(
  'SystemInfo',
  Type.Object({
    status: Type.Literal('ok'),
    version: Type.String(),
    api: Type.Literal('v1'),
    generation: Type.Integer({ description: 'Of the guest protocol' }),
    pid: Type.Integer(),
    uid: Type.Integer(),
    mode: oneOf('system', 'user'),
    api_listen_addr: Type.String(),
    api_advertise_addr: Type.String(),
    host_ip: Type.String(),
    socket: Type.String(),
    state_dir: Type.String(),
    hypervisor: Type.String({ description: 'The default driver' }),
    accelerator: oneOf('kvm', 'tcg', 'none'),
    accelerator_reason: Type.String(),
    cpus: Count,
    memory_mb: Count,
    started_at: Timestamp,
    features: Type.Array(Type.String()),
  }),
)
export type SystemInfo = Static<typeof SystemInfo>

export const Capacity = named(
  'Capacity',
  Type.Object({
    cpu: Type.Object({ physical: Count, oversubscription: Type.Number(), limit: Count, allocated: Count }),
    memory_mb: Type.Object({ physical: Count, limit: Count, allocated: Count }),
  }),
)
export const SystemSummary = named(
  'SystemSummary',
  Type.Object({
    total_vms: Count,
    by_status: Type.Record(Type.String(), Count),
    by_runtime: Type.Record(Type.String(), Count),
    total_plugins: Count,
    enabled_plugins: Count,
    plugins: Type.Array(Type.Object({ name: Type.String(), version: Type.String(), enabled: Type.Boolean() })),
    capacity: Capacity,
    images: Count,
    kernels: Count,
  }),
)
export type SystemSummary = Static<typeof SystemSummary>

export const Check = named(
  'Check',
  Type.Object({
    name: Type.String(),
    status: oneOf('ok', 'warn', 'fail'),
    message: Type.String(),
    hint: Type.Union([Type.String(), Type.Null()]),
  }),
)
export type Check = Static<typeof Check>
export const Doctor = named('Doctor', Type.Object({ healthy: Type.Boolean(), checks: Type.Array(Check) }))
export type Doctor = Static<typeof Doctor>

export const TokenScope = oneOf('read', 'exec', 'admin')
export const Token = named(
  'Token',
  Type.Object({
    name: Type.String(),
    prefix: Type.String(),
    scope: TokenScope,
    created_at: Timestamp,
    expires_at: Type.Union([Timestamp, Type.Null()]),
    last_used_at: Type.Union([Timestamp, Type.Null()]),
  }),
)
export type Token = Static<typeof Token>
export const TokenCreate = named(
  'TokenCreate',
  Type.Object(
    {
      name: Type.String({ pattern: '^[A-Za-z0-9][A-Za-z0-9._-]*$', maxLength: 63 }),
      scope: defaulted(TokenScope, 'read'),
      expires_in_s: Type.Optional(Type.Integer({ minimum: 60, maximum: 10 * 365 * 86_400 })),
    },
    { additionalProperties: false },
  ),
)
export type TokenCreate = Static<typeof TokenCreate>

export const EventQuery = Type.Object({
  after: Type.Optional(
    Type.Integer({ minimum: 0, description: 'Only events with a larger sequence number; Last-Event-ID says the same' }),
  ),
  follow: defaulted(Type.Boolean(), true),
  type: Type.Optional(Type.String({ description: 'Comma list' })),
  name: Type.Optional(Type.String()),
})

export const systemOperations = {
  'system.health': operation({
    method: 'GET',
    path: '/healthz',
    detail: { tags, summary: 'Liveness' },
    response: { 200: Type.Object({ status: Type.Literal('ok') }) },
    faults: [],
    scope: 'read',
  }),
  'system.status': operation({
    method: 'GET',
    path: '/api/v1/system/status',
    detail: { tags, summary: 'Status, for Volant clients' },
    response: { 200: Type.Object({ status: Type.Literal('ok') }) },
    faults: [],
    scope: 'read',
  }),
  'system.info': operation({
    method: 'GET',
    path: '/api/v1/system/info',
    detail: { tags, summary: 'What this daemon is' },
    response: { 200: SystemInfo },
    faults: [],
    scope: 'read',
  }),
  'system.summary': operation({
    method: 'GET',
    path: '/api/v1/system/summary',
    detail: { tags, summary: 'Counts and capacity' },
    response: { 200: SystemSummary },
    faults: [],
    scope: 'read',
  }),
  'system.doctor': operation({
    method: 'GET',
    path: '/api/v1/system/doctor',
    detail: { tags, summary: 'What this host can do, and the fix of what it cannot' },
    response: { 200: Doctor },
    faults: [],
    scope: 'read',
  }),
  'system.openapi': operation({
    method: 'GET',
    path: '/openapi',
    detail: { tags, summary: 'This description, as OpenAPI 3.1' },
    response: { 200: Type.Object({ openapi: Type.String() }, { additionalProperties: true }) },
    faults: [],
    scope: 'read',
  }),
  events: operation({
    method: 'GET',
    path: '/api/v1/events',
    detail: { tags, summary: 'Events as server-sent events, from any sequence number' },
    query: EventQuery,
    response: {},
    faults: ['events_compacted'],
    scope: 'read',
    stream: 'sse',
  }),
  'events.vms': operation({
    method: 'GET',
    path: '/api/v1/events/vms',
    detail: { tags, summary: 'The events of vms, as a Volant client reads them' },
    query: EventQuery,
    response: {},
    faults: ['events_compacted'],
    scope: 'read',
    stream: 'sse',
  }),
  'token.create': operation({
    method: 'POST',
    path: '/api/v1/tokens',
    detail: { tags, summary: 'Make a token; its secret is answered once' },
    body: TokenCreate,
    response: { 201: Type.Composite([Token, Type.Object({ secret: Type.String() })]) },
    faults: ['token_exists'],
    scope: 'admin',
  }),
  'token.list': operation({
    method: 'GET',
    path: '/api/v1/tokens',
    detail: { tags, summary: 'List tokens' },
    response: { 200: Type.Array(Token) },
    faults: [],
    scope: 'admin',
  }),
  'token.get': operation({
    method: 'GET',
    path: '/api/v1/tokens/:name',
    detail: { tags, summary: 'Show one token, without its secret' },
    params: Type.Object({ name: Type.String({ maxLength: 63 }) }),
    response: { 200: Token },
    faults: ['token_not_found'],
    scope: 'admin',
  }),
  'token.delete': operation({
    method: 'DELETE',
    path: '/api/v1/tokens/:name',
    detail: { tags, summary: 'Revoke a token' },
    params: Type.Object({ name: Type.String({ maxLength: 63 }) }),
    response: { 204: Nothing },
    faults: ['token_not_found'],
    scope: 'admin',
  }),
} as const
