import { index, integer, sqliteTable, text, uniqueIndex } from 'drizzle-orm/sqlite-core'
import { Type, type Static } from '@sinclair/typebox'
import { sql } from 'drizzle-orm'
import { ImageConfig } from '../contract/image.ts'
import { Egress, MacvtapMode, type NetworkType, Peer } from '../contract/network.ts'
import { fieldsOf, specOf, VmFields } from '../contract/vm-spec.ts'
import type { VmState } from '../contract/vm-state.ts'
import { oneOf } from '../contract/operation.ts'
import { WALLS, type Wall } from '../contract/wall.ts'
import type { FaultRecord } from '../lib/fault.ts'
import { fill } from '../contract/schema.ts'
import { json, shaped } from './json-column.ts'

/** The tables of `migrations/`, as drizzle sees them; a test compares the two. Times are Unix milliseconds. */

/** One process, told apart from a later one with its number by its start time and the host's boot. */
const ProcessIdentity = Type.Object({ pid: Type.Integer(), startTime: Type.String() })
export type ProcessIdentity = Static<typeof ProcessIdentity>
const MachineRecord = Type.Object({
  bootId: Type.String(),
  process: ProcessIdentity,
  helpers: Type.Unsafe<readonly ProcessIdentity[]>(Type.Array(ProcessIdentity)),
  folder: Type.String(),
  uuid: Type.String(),
  walls: Type.Optional(Type.Unsafe<readonly Wall[]>(Type.Array(oneOf(...WALLS)))),
})
export type MachineRecord = Static<typeof MachineRecord>
const KeptFault = Type.Object({
  code: Type.String(),
  kind: Type.Unsafe<FaultRecord['kind']>(Type.String()),
  message: Type.String(),
  data: Type.Optional(Type.Unsafe<Readonly<Record<string, unknown>>>(Type.Record(Type.String(), Type.Unknown()))),
  hint: Type.Optional(Type.Unsafe<string | undefined>(Type.String())),
})

export const kernels = sqliteTable(
  'kernels',
  {
    digest: text().primaryKey(),
    name: text().notNull().unique(),
    version: text().notNull(),
    format: text().$type<'bzimage' | 'vmlinux'>().notNull(),
    modules: json('modules', Type.Array(Type.String()), () => []).notNull(),
    sizeBytes: integer('size_bytes').notNull(),
    isDefault: integer('is_default', { mode: 'boolean' }).notNull().default(false),
    createdAt: integer('created_at').notNull(),
  },
  (t) => [uniqueIndex('kernels_default').on(t.isDefault).where(sql`is_default = 1`)],
)

export const images = sqliteTable('images', {
  digest: text().primaryKey(),
  format: text().notNull(),
  erofsDigest: text('erofs_digest').notNull(),
  sizeBytes: integer('size_bytes').notNull(),
  config: json('config', ImageConfig, () => ({
    entrypoint: [],
    cmd: [],
    env: [],
    user: '',
    working_dir: '',
    stop_signal: '',
    exposed_ports: [],
  })).notNull(),
  status: text().$type<'pending' | 'pulling' | 'converting' | 'ready' | 'failed'>().notNull(),
  createdAt: integer('created_at').notNull(),
})

export const imageNames = sqliteTable(
  'image_names',
  {
    name: text().primaryKey(),
    digest: text()
      .notNull()
      .references(() => images.digest, { onDelete: 'cascade' }),
  },
  (t) => [index('image_names_digest').on(t.digest)],
)

/**
 * What is saved of a machine: the files stand in the folder of its id. A row goes when nothing refers to it any more.
 */
export const snapshots = sqliteTable('snapshots', {
  id: text().primaryKey().notNull(),
  /** The uid of the vm whose machine it was, which may be gone. */
  sourceUid: text('source_uid').notNull(),
  createdAt: integer('created_at').notNull(),
})

export const vms = sqliteTable(
  'vms',
  {
    id: integer().primaryKey({ autoIncrement: true }),
    uid: text().notNull().unique(),
    name: text().notNull().unique(),
    state: text().$type<VmState>().notNull(),
    gen: integer().notNull().default(1),
    spec: shaped('spec', VmFields, {
      read: specOf,
      write: fieldsOf,
      standIn: () => specOf(fill(VmFields, {})),
    }).notNull(),
    runtime: text().notNull(),
    plugin: text(),
    hypervisor: text().notNull(),
    imageDigest: text('image_digest')
      .notNull()
      .references(() => images.digest),
    kernelDigest: text('kernel_digest')
      .notNull()
      .references(() => kernels.digest),
    cpuCores: integer('cpu_cores').notNull(),
    memoryMb: integer('memory_mb').notNull(),
    cid: integer().notNull().unique(),
    mac: text().notNull().unique(),
    ip: text().notNull().default(''),
    machineId: text('machine_id').notNull(),
    /** Whether the vm was ready once: a create that was cut short before that leaves no row. */
    wasReady: integer('was_ready', { mode: 'boolean' }).notNull().default(false),
    statusMessage: text('status_message'),
    createdAt: integer('created_at').notNull(),
    updatedAt: integer('updated_at').notNull(),
    /** The uid of the vm that this one was forked from, which may be gone. */
    forkedFrom: text('forked_from'),
    /** What the guest goes on from: it has not run since this was taken. */
    snapshot: text().references(() => snapshots.id),
    /** Reboots in a row that came soon after a start. */
    quickReboots: integer('quick_reboots').notNull().default(0),
  },
  (t) => [index('vms_state').on(t.state), index('vms_image').on(t.imageDigest), index('vms_kernel').on(t.kernelDigest)],
)

/** What of a network may be changed, and what only its making needs. */
export const NetworkSpec = Type.Object({
  pool: Type.Union([Type.Object({ start: Type.String(), end: Type.String() }), Type.Null()]),
  reservations: Type.Record(Type.String(), Type.String()),
  peer: Peer,
  egress: Egress,
  dhcp: Type.Boolean(),
  parent: Type.Union([Type.String(), Type.Null()]),
  parent_mode: Type.Union([MacvtapMode, Type.Null()]),
})
export type NetworkSpec = Static<typeof NetworkSpec>

export const networks = sqliteTable(
  'networks',
  {
    uid: text().primaryKey().notNull(),
    name: text().notNull().unique(),
    type: text().$type<NetworkType>().notNull(),
    isDefault: integer('is_default', { mode: 'boolean' }).notNull().default(false),
    /** The link on this host; absent where there is none (macvtap). */
    bridge: text().unique(),
    subnet: text(),
    gateway: text(),
    subnet6: text(),
    mac: text().notNull(),
    mtu: integer().notNull(),
    spec: json('spec', NetworkSpec).notNull(),
    createdAt: integer('created_at').notNull(),
  },
  (t) => [uniqueIndex('networks_default').on(t.isDefault).where(sql`is_default = 1`)],
)
export type NetworkRow = typeof networks.$inferSelect

/** What has a card in a network: a vm or a container, or the name of one that was deleted a moment ago. */
export const leases = sqliteTable(
  'leases',
  {
    id: integer().primaryKey({ autoIncrement: true }),
    networkUid: text('network_uid')
      .notNull()
      .references(() => networks.uid),
    kind: text().$type<'vm' | 'container'>().notNull(),
    /** What the vm or the container is called. */
    name: text().notNull(),
    /** Absent for a container, and for a vm that is gone. */
    vmUid: text('vm_uid').references(() => vms.uid),
    /** Which card of its owner, counted from 0. */
    nic: integer().notNull(),
    mode: text().$type<'bridged' | 'dhcp'>().notNull(),
    link: text().notNull().unique(),
    mac: text().notNull().unique(),
    /** IPv4 as a number, so that the order is that of the numbers. */
    address: integer(),
    address6: text(),
    /** What it may reach outside, where that is not what its network says. */
    egress: json('egress', Egress),
    releasedAt: integer('released_at'),
    createdAt: integer('created_at').notNull(),
  },
  (t) => [uniqueIndex('leases_address').on(t.networkUid, t.address), uniqueIndex('leases_nic').on(t.vmUid, t.nic)],
)
export type LeaseRow = typeof leases.$inferSelect

/** A port of the host that leads into a vm. */
export const ports = sqliteTable(
  'ports',
  {
    id: integer().primaryKey({ autoIncrement: true }),
    protocol: text().$type<'tcp' | 'udp'>().notNull(),
    address: text().notNull(),
    port: integer().notNull(),
    guestPort: integer('guest_port').notNull(),
    vmUid: text('vm_uid')
      .notNull()
      .references(() => vms.uid),
  },
  (t) => [uniqueIndex('ports_place').on(t.protocol, t.address, t.port), index('ports_vm').on(t.vmUid)],
)
export type PortRow = typeof ports.$inferSelect

/**
 * What one boot of a vm is, from its start to its end: replaced whole when the next one begins. A vm that never booted
 * has an empty one.
 */
export const boots = sqliteTable('boots', {
  vmUid: text('vm_uid')
    .primaryKey()
    .notNull()
    .references(() => vms.uid, { onDelete: 'cascade' }),
  /** What the driver needs to adopt the machine: absent while there is none. */
  machine: json('machine', MachineRecord, () => ({
    bootId: '',
    process: { pid: 0, startTime: '' },
    helpers: [],
    folder: '',
    uuid: '',
  })),
  /** SHA-256 of the session's secret, hex. */
  sessionSecret: text('session_secret'),
  ackedSeq: integer('acked_seq').notNull().default(0),
  /** Whether the agent must still be told who it is: its machine was restored. */
  identityDue: integer('identity_due', { mode: 'boolean' }).notNull().default(false),
  bootMs: integer('boot_ms'),
  exitCode: integer('exit_code'),
  exitSignal: integer('exit_signal'),
  exitMessage: text('exit_message'),
  startedAt: integer('started_at'),
  stoppedAt: integer('stopped_at'),
})
export type BootRow = typeof boots.$inferSelect
/** A vm with the boot that is under way, or its last one. */
export type VmRow = typeof vms.$inferSelect & { readonly boot: BootRow }

export const events = sqliteTable('events', {
  seq: integer().primaryKey({ autoIncrement: true }),
  noun: text().notNull(),
  type: text().notNull(),
  name: text().notNull(),
  uid: text(),
  /** What an event of its noun says beside its name, as the noun declares it. */
  data: json('data', Type.Record(Type.String(), Type.Unknown())).notNull(),
  message: text().notNull(),
  at: integer().notNull(),
})

export const idempotency = sqliteTable('idempotency', {
  key: text().primaryKey(),
  operation: text().notNull(),
  requestHash: text('request_hash').notNull(),
  /** What the request made, of whatever noun; it may be gone. */
  made: json('made', Type.Array(Type.Object({ uid: Type.String(), name: Type.String() }))).notNull(),
  /** The problem that the request ended with; absent while it runs and where it succeeded. */
  fault: json('fault', KeptFault),
  at: integer().notNull(),
})

export const tokens = sqliteTable('tokens', {
  name: text().primaryKey(),
  prefix: text().notNull(),
  hash: text().notNull().unique(),
  scope: text().$type<'read' | 'exec' | 'admin'>().notNull(),
  createdAt: integer('created_at').notNull(),
  expiresAt: integer('expires_at'),
  lastUsedAt: integer('last_used_at'),
})
