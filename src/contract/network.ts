import { Type, type Static } from '@sinclair/typebox'
import { nounEvents } from './event.ts'
import { Nothing, oneOf, operation, Timestamp } from './operation.ts'
import { defaulted, named } from './schema.ts'

/** What stands for a way of being connected in the place of a network's name. */
export const RESERVED_NETWORK_NAMES = ['vsock', 'user', 'bridged', 'dhcp', 'none', 'host'] as const
export const NetworkName = Type.String({
  pattern: '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$',
  maxLength: 32,
  description: 'a-z, 0-9, inner dashes, at most 32',
})
export const NetworkRef = Type.Object({ name: Type.String({ minLength: 1, maxLength: 64 }) })

const Address4 = Type.String({ pattern: String.raw`^\d{1,3}(\.\d{1,3}){3}$`, maxLength: 15, description: 'IPv4' })
const Cidr4 = Type.String({
  pattern: String.raw`^\d{1,3}(\.\d{1,3}){3}/\d{1,2}$`,
  maxLength: 18,
  description: 'IPv4/LENGTH',
})
export const Mac = Type.String({ pattern: '^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$', description: 'aa:bb:cc:dd:ee:ff' })
export const IpAddress = Type.String({ pattern: '^[0-9a-fA-F:.]{2,45}$', description: 'IPv4 or IPv6' })

/** What the workloads of a network may reach outside of it. */
export const Egress = named(
  'Egress',
  Type.Object(
    {
      policy: oneOf('all', 'none', 'allow-list'),
      allow: defaulted(
        Type.Array(
          Type.Object(
            {
              cidr: Type.Optional(
                Type.String({
                  pattern: '^[0-9a-fA-F:.]{2,45}(/\\d{1,3})?$',
                  description: 'IPv4 or IPv6, with a length or one address',
                }),
              ),
              name: Type.Optional(
                Type.String({
                  pattern: String.raw`^(\*\.)?([a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`,
                  maxLength: 253,
                  description: 'A DNS name, or *.NAME for those below it',
                }),
              ),
              protocol: Type.Optional(oneOf('tcp', 'udp')),
              ports: Type.Optional(
                Type.String({ pattern: String.raw`^\d{1,5}(-\d{1,5})?$`, description: 'One port, or FIRST-LAST' }),
              ),
            },
            { additionalProperties: false, description: 'Exactly one of cidr and name' },
          ),
          { maxItems: 256 },
        ),
        [],
      ),
    },
    { additionalProperties: false },
  ),
)
export type Egress = Static<typeof Egress>

export const NetworkType = oneOf('bridged', 'isolated', 'host-only', 'macvtap')
export type NetworkType = Static<typeof NetworkType>
export const MacvtapMode = oneOf('bridge', 'private', 'passthru')
export const Peer = oneOf('open', 'closed')

const Pool = Type.Object({ start: Address4, end: Address4 }, { additionalProperties: false })
const Reservations = Type.Record(Type.String({ minLength: 1, maxLength: 63 }), Address4)

export const NetworkCreate = named(
  'NetworkCreate',
  Type.Object(
    {
      name: NetworkName,
      type: defaulted({ ...NetworkType, description: 'What it is connected to' }, 'bridged'),
      subnet: Type.Optional({ ...Cidr4, description: 'IPv4 range; the next that is free where absent' }),
      gateway: Type.Optional({
        ...Address4,
        description: "The host's own address; the first of the subnet where absent",
      }),
      pool: Type.Optional({ ...Pool, description: 'What is given out; all but the gateway where absent' }),
      reservations: defaulted({ ...Reservations, description: 'Name of a vm or container → its address' }, {}),
      ipv6: defaulted(
        Type.String({ pattern: '^(auto|off|[0-9a-fA-F:]+/64)$', description: 'auto (a ULA), off, or a prefix of /64' }),
        'auto',
      ),
      mtu: Type.Optional(Type.Integer({ minimum: 1280, maximum: 65_521, description: "The uplink's where absent" })),
      peer: defaulted({ ...Peer, description: 'Whether its workloads reach one another' }, 'open'),
      egress: defaulted(Egress, { policy: 'all', allow: [] }),
      dhcp: defaulted(Type.Boolean({ description: 'Answer DHCP with the leases' }), true),
      parent: Type.Optional(
        Type.String({ minLength: 1, maxLength: 15, description: 'Of a macvtap: the NIC below it' }),
      ),
      parent_mode: Type.Optional({ ...MacvtapMode, description: 'How macvtaps of one parent see each other (bridge)' }),
    },
    { additionalProperties: false },
  ),
)
export type NetworkCreate = Static<typeof NetworkCreate>

export const NetworkUpdate = named(
  'NetworkUpdate',
  Type.Object(
    {
      reservations: Type.Optional(Reservations),
      peer: Type.Optional({ ...Peer, description: 'Whether its workloads reach one another' }),
      egress: Type.Optional(Egress),
      dhcp: Type.Optional(Type.Boolean({ description: 'Answer DHCP with the leases' })),
    },
    { additionalProperties: false },
  ),
)
export type NetworkUpdate = Static<typeof NetworkUpdate>

/** What has an address in a network. */
export const Lease = named(
  'Lease',
  Type.Object({
    name: Type.String(),
    kind: oneOf('vm', 'container'),
    uid: Type.Union([Type.String(), Type.Null()]),
    ip_address: Type.Union([Type.String(), Type.Null()]),
    ip6_address: Type.Union([Type.String(), Type.Null()]),
    mac_address: Type.String(),
    link: Type.String({ description: "The host's end: a tap or a veth" }),
    container_link: Type.Optional(Type.String({ description: "The container's end" })),
    released_at: Type.Union([Timestamp, Type.Null()], {
      description: 'Its owner is gone, and gets the address again if it comes back soon',
    }),
  }),
)
export type Lease = Static<typeof Lease>

export const Network = named(
  'Network',
  Type.Object({
    uid: Type.String({ pattern: '^net_[0-9a-z]{20}$' }),
    name: Type.String(),
    type: NetworkType,
    default: Type.Boolean(),
    bridge: Type.Union([Type.String(), Type.Null()], { description: 'The link on this host' }),
    subnet: Type.Union([Type.String(), Type.Null()]),
    gateway: Type.Union([Type.String(), Type.Null()]),
    pool: Type.Union([Pool, Type.Null()]),
    reservations: Reservations,
    subnet6: Type.Union([Type.String(), Type.Null()]),
    gateway6: Type.Union([Type.String(), Type.Null()]),
    mtu: Type.Integer(),
    peer: Peer,
    egress: Egress,
    dhcp: Type.Boolean(),
    parent: Type.Union([Type.String(), Type.Null()]),
    parent_mode: Type.Union([MacvtapMode, Type.Null()]),
    addresses_used: Type.Integer(),
    addresses_total: Type.Integer(),
    created_at: Timestamp,
  }),
)
export type Network = Static<typeof Network>

/** Counters of one member, of the firewall in front of its port. */
export const NetworkDetail = named(
  'NetworkDetail',
  Type.Intersect([
    Network,
    Type.Object({
      leases: Type.Array(Lease),
      dropped: Type.Record(Type.String(), Type.Record(Type.String(), Type.Integer()), {
        description: 'Link → why frames of it were dropped → how many',
      }),
    }),
  ]),
)
export type NetworkDetail = Static<typeof NetworkDetail>

/** A container that gets a card in a network. */
export const NetworkAttach = named(
  'NetworkAttach',
  Type.Object(
    {
      container: Type.String({
        pattern: '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$',
        maxLength: 63,
        description: 'What the others find it by: a DNS label',
      }),
      netns: Type.Optional(
        Type.String({
          pattern: '^(/.+|[1-9][0-9]{0,9})$',
          maxLength: 4096,
          description:
            'Its network namespace, by a path or a pid; absent: the end stays on the host, to be moved by the caller',
        }),
      ),
      ip_address: Type.Optional({ ...Address4, description: 'The address; the next that is free where absent' }),
    },
    { additionalProperties: false },
  ),
)
export type NetworkAttach = Static<typeof NetworkAttach>

/** The file of seed 002's address management: what `network export` writes and `network import` reads. */
export const IpamFile = named(
  'IpamFile',
  Type.Object(
    {
      network: Type.String({ minLength: 1, maxLength: 32 }),
      subnet: Cidr4,
      gateway: Address4,
      pool: Pool,
      reservations: defaulted(Reservations, {}),
    },
    { additionalProperties: false },
  ),
)
export type IpamFile = Static<typeof IpamFile>

export const networkEvents = nounEvents(
  'network',
  ['NETWORK_CREATED', 'NETWORK_UPDATED', 'NETWORK_DELETED', 'NETWORK_REPAIRED'],
  Type.Object({ subnet: defaulted(Type.String(), '') }),
)

const tags = ['network'] as const
const faults = ['network_not_found', 'network_ambiguous'] as const
const SETTING = ['network_invalid', 'network_conflict', 'network_unable'] as const
export const networkOperations = {
  'network.create': operation({
    method: 'POST',
    path: '/api/v1/networks',
    detail: { tags, summary: 'Make a network' },
    body: NetworkCreate,
    response: { 201: Network },
    faults: ['network_exists', ...SETTING],
    scope: 'admin',
  }),
  'network.list': operation({
    method: 'GET',
    path: '/api/v1/networks',
    detail: { tags, summary: 'List networks' },
    response: { 200: Type.Array(Network) },
    faults: [],
    scope: 'read',
  }),
  'network.get': operation({
    method: 'GET',
    path: '/api/v1/networks/:name',
    detail: { tags, summary: 'Show one network, its members and what was dropped of them' },
    params: NetworkRef,
    response: { 200: NetworkDetail },
    faults,
    scope: 'read',
  }),
  'network.update': operation({
    method: 'PATCH',
    path: '/api/v1/networks/:name',
    detail: { tags, summary: 'Change what a network allows' },
    params: NetworkRef,
    body: NetworkUpdate,
    response: { 200: Network },
    faults: [...faults, ...SETTING],
    scope: 'admin',
  }),
  'network.delete': operation({
    method: 'DELETE',
    path: '/api/v1/networks/:name',
    detail: { tags, summary: 'Delete a network that nothing uses' },
    params: NetworkRef,
    response: { 204: Nothing },
    faults: [...faults, 'network_in_use'],
    scope: 'admin',
  }),
  'network.attach': operation({
    method: 'POST',
    path: '/api/v1/networks/:name/attachments',
    detail: { tags, summary: 'Give a container a card in a network' },
    params: NetworkRef,
    body: NetworkAttach,
    response: { 201: Lease },
    faults: [
      ...faults,
      'network_invalid',
      'attachment_exists',
      'network_exhausted',
      'network_address_taken',
      'network_unable',
    ],
    scope: 'admin',
  }),
  'network.detach': operation({
    method: 'DELETE',
    path: '/api/v1/networks/:name/attachments/:container',
    detail: { tags, summary: 'Take a container out of a network' },
    params: Type.Object({
      name: Type.String({ minLength: 1, maxLength: 64 }),
      container: Type.String({ minLength: 1, maxLength: 63 }),
    }),
    response: { 204: Nothing },
    faults: [...faults, 'attachment_not_found'],
    scope: 'admin',
  }),
  'network.import': operation({
    method: 'POST',
    path: '/api/v1/networks/import',
    detail: { tags, summary: 'Make a network of an address management file' },
    body: IpamFile,
    response: { 201: Network },
    faults: ['network_exists', ...SETTING],
    scope: 'admin',
  }),
  'network.export': operation({
    method: 'GET',
    path: '/api/v1/networks/:name/export',
    detail: { tags, summary: 'Write the address management file of a network' },
    params: NetworkRef,
    response: { 200: IpamFile },
    faults: [...faults, 'network_invalid'],
    scope: 'read',
  }),
} as const
