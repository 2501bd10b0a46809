import { Type, type Static } from '@sinclair/typebox'
import { oneOf, operation } from './operation.ts'
import { named } from './schema.ts'

/** How many ports one vm publishes at most, ranges counted by their ports. */
export const PUBLISH_MAX = 256

/** A port of the host that leads into a vm, as Docker writes it. */
export const Publish = Type.String({
  pattern: String.raw`^((\[[0-9a-fA-F:.]+\]|\d{1,3}(\.\d{1,3}){3}):)?(\d{1,5}(-\d{1,5})?:)?\d{1,5}(-\d{1,5})?(/(tcp|udp))?$`,
  maxLength: 80,
  description:
    '[ADDRESS:]HOST:GUEST[/tcp|udp]; 0 or nothing for HOST picks a free port; the loopback where no address is said',
})

export const Port = named(
  'Port',
  Type.Object({
    vm: Type.String(),
    protocol: oneOf('tcp', 'udp'),
    host_address: Type.String(),
    host_port: Type.Integer(),
    guest_port: Type.Integer(),
    ip_address: Type.String({ description: 'Of the guest' }),
  }),
)
export type Port = Static<typeof Port>

export const portOperations = {
  'port.list': operation({
    method: 'GET',
    path: '/api/v1/ports',
    detail: { tags: ['port'], summary: 'List the ports of this host that lead into vms' },
    query: Type.Object({ vm: Type.Optional(Type.String({ minLength: 1, maxLength: 64 })) }),
    response: { 200: Type.Array(Port) },
    faults: ['vm_not_found', 'vm_ambiguous'],
    scope: 'read',
  }),
} as const
