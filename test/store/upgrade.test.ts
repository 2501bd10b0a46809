import { Database } from 'bun:sqlite'
import { afterEach, beforeEach, expect, test } from 'bun:test'
import { existsSync, linkSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Value } from '@sinclair/typebox/value'
import { VmCreate } from '../../src/contract/vm-spec.ts'
import { Snapshots, closeSaved } from '../../src/snapshot/snapshots.ts'
import { vmEvents } from '../../src/contract/vm.ts'
import { openStore } from '../../src/store/open.ts'
import { idempotency } from '../../src/store/schema.ts'
import { immediate } from '../../src/store/store.ts'
import type { Store } from '../../src/store/store.ts'
import { all, find } from '../../src/vm/row/lookup.ts'
import { view } from '../../src/vm/row/view.ts'

/* A state folder that an older release filled, opened by this one: nothing of it is lost. */

const DIGEST = `sha256:${'0'.repeat(64)}`
const MIGRATIONS = join(import.meta.dir, '../../src/store/migrations')
const SPEC = JSON.stringify({
  ...(Value.Default(VmCreate, { image: 'base' }) as object),
  env: { A: 'b' },
  metadata: {},
})
const MACHINE = { bootId: 'b', process: { pid: 7, startTime: '1' }, helpers: [], folder: '/run/m/1', uuid: 'u' }

let state: string
beforeEach(() => {
  state = mkdtempSync('/tmp/aerie-u-')
})
afterEach(() => {
  rmSync(state, { recursive: true })
})

/** Makes the database as the release that knew this many migrations left it. */
const older = (known: number): Database => {
  const sqlite = new Database(join(state, 'state.db'), { create: true, strict: true })
  for (const name of readdirSync(MIGRATIONS).sort().slice(0, known))
    sqlite.run(readFileSync(join(MIGRATIONS, name), 'utf8'))
  sqlite.run(`PRAGMA user_version = ${known}`)
  sqlite.run(
    `INSERT INTO images (digest, format, erofs_digest, size_bytes, config, status, created_at) VALUES ('${DIGEST}', 'rootfs', '0', 0, '{}', 'ready', 0)`,
  )
  sqlite.run(
    `INSERT INTO kernels (digest, name, version, format, modules, size_bytes, is_default, created_at) VALUES ('${DIGEST}', 'k', '1', 'bzimage', '[]', 0, 1, 0)`,
  )
  return sqlite
}

const insertVm = (sqlite: Database, id: number, name: string, vmState: string, more: Record<string, unknown> = {}) => {
  const columns: Record<string, unknown> = {
    id,
    uid: `vm_${id}`,
    name,
    state: vmState,
    gen: 5,
    spec: SPEC,
    runtime: 'vm',
    hypervisor: 'qemu',
    image_digest: DIGEST,
    kernel_digest: DIGEST,
    cpu_cores: 1,
    memory_mb: 512,
    cid: id + 2,
    mac: `02:00:00:00:00:0${id}`,
    machine_id: '0'.repeat(32),
    was_ready: 1,
    created_at: id,
    updated_at: id,
    ...more,
  }
  const names = Object.keys(columns)
  sqlite
    .query(`INSERT INTO vms (${names.join()}) VALUES (${names.map(() => '?').join()})`)
    .run(...(Object.values(columns) as string[]))
}

const saved = (uid: string, name: string, text: string) => {
  const folder = join(state, 'vms', uid, name)
  mkdirSync(folder, { recursive: true })
  for (const file of ['state', 'memory']) writeFileSync(join(folder, file), `${text} ${file}`)
}

const opened = <T>(use: (store: Store) => T): T => {
  const store = openStore(join(state, 'state.db'))
  try {
    return use(store)
  } finally {
    store.$client.close()
  }
}

test('a vm of a release without boots keeps all that its boot was', () => {
  const sqlite = older(2)
  insertVm(sqlite, 1, 'runs', 'running', {
    machine: JSON.stringify(MACHINE),
    session_secret: 'secret',
    acked_seq: 9,
    boot_ms: 700,
    started_at: 3,
    status_message: 'said',
  })
  insertVm(sqlite, 2, 'ended', 'crashed', {
    exit_code: 3,
    exit_signal: 9,
    exit_message: 'oh',
    started_at: 1,
    stopped_at: 2,
  })
  insertVm(sqlite, 3, 'told-late', 'paused', { identity_due: 1, machine: JSON.stringify(MACHINE) })
  insertVm(sqlite, 4, 'never', 'pending', { was_ready: 0 })
  sqlite.run(`INSERT INTO tokens (name, prefix, hash, scope, created_at) VALUES ('t', 'p', 'h', 'read', 1)`)
  sqlite.close()

  opened((store) => {
    expect(find(store, 'runs')).toMatchObject({
      gen: 5,
      statusMessage: 'said',
      snapshot: null,
      boot: { machine: MACHINE, sessionSecret: 'secret', ackedSeq: 9, bootMs: 700, startedAt: 3, stoppedAt: null },
    })
    expect(view(find(store, 'runs'))).toMatchObject({ pid: 7, boot_ms: 700, serial_socket: '/run/m/1/console.sock' })
    expect(view(find(store, 'ended'))).toMatchObject({ exit_code: 3, exit_signal: 9, exit_message: 'oh', pid: null })
    expect(find(store, 'told-late').boot.identityDue).toBe(true)
    expect(find(store, 'never')).toMatchObject({ wasReady: false, boot: { startedAt: null, machine: null } })
    expect(all(store).length).toBe(4)
    expect(store.$client.query('PRAGMA foreign_key_check').all()).toEqual([])
  })
})

test('what a release without snapshots saved of its vms can still be gone on from', () => {
  const sqlite = older(2)
  insertVm(sqlite, 1, 'alone', 'standby', { saved: 'saved-a1', stopped_at: 4 })
  insertVm(sqlite, 2, 'twin-1', 'standby', { saved: 'saved-t1' })
  insertVm(sqlite, 3, 'twin-2', 'standby', { saved: 'saved-t1' })
  insertVm(sqlite, 4, 'awake', 'running')
  sqlite.close()
  saved('vm_1', 'saved-a1', 'alone')
  saved('vm_2', 'saved-t1', 'twin')
  mkdirSync(join(state, 'vms/vm_3/saved-t1'), { recursive: true })
  for (const file of ['state', 'memory'])
    linkSync(join(state, 'vms/vm_2/saved-t1', file), join(state, 'vms/vm_3/saved-t1', file))
  saved('vm_4', 'saved-left', 'left by a crash')

  opened((store) => {
    const snapshots = new Snapshots(store, state)
    snapshots.takeOver()
    snapshots.takeOver() // as after a crash
    snapshots.sweep()

    expect(all(store).map((row) => row.snapshot)).toEqual(['snap_a1', 'snap_t1', 'snap_t1', null])
    expect(readdirSync(join(state, 'snapshots')).sort()).toEqual(['snap_a1', 'snap_t1'])
    expect(readFileSync(join(state, 'snapshots/snap_t1/memory'), 'utf8')).toBe('twin memory')
    closeSaved(snapshots.open('snap_a1'))
    for (const uid of ['vm_1', 'vm_2', 'vm_3', 'vm_4']) expect(readdirSync(join(state, 'vms', uid))).toEqual([])
    expect(store.$client.query('PRAGMA foreign_key_check').all()).toEqual([])
  })
  expect(existsSync(join(state, 'snapshots/snap_a1/state'))).toBe(true)
})

test('the keys of a release that knew them of vms alone are keys of a create', () => {
  const sqlite = older(4)
  insertVm(sqlite, 1, 'kept', 'stopped')
  for (const [key, uid, fault] of [
    ['made', 'vm_1', null],
    ['gone', 'vm_9', null],
    ['failed', 'vm_8', '{"code":"vm_start_failed","kind":"unavailable","message":"Cannot","data":{"name":"x"}}'],
  ])
    sqlite.run('INSERT INTO idempotency (key, request_hash, vm_uid, fault, at) VALUES (?, ?, ?, ?, 7)', [
      String(key),
      'h',
      String(uid),
      fault ?? null,
    ])
  sqlite.close()

  opened((store) => {
    expect(store.select().from(idempotency).orderBy(idempotency.key).all()).toEqual([
      {
        key: 'failed',
        operation: 'vm.create',
        requestHash: 'h',
        made: [{ uid: 'vm_8', name: '' }],
        fault: { code: 'vm_start_failed', kind: 'unavailable', message: 'Cannot', data: { name: 'x' } },
        at: 7,
      },
      { key: 'gone', operation: 'vm.create', requestHash: 'h', made: [{ uid: 'vm_9', name: '' }], fault: null, at: 7 },
      {
        key: 'made',
        operation: 'vm.create',
        requestHash: 'h',
        made: [{ uid: 'vm_1', name: 'kept' }],
        fault: null,
        at: 7,
      },
    ])
  })
})

test('a vm of a release whose specification was smaller gets the defaults of what came later', () => {
  const sqlite = older(1)
  const smaller = {
    image: 'base',
    cpu_cores: 2,
    memory_mb: 256,
    disk_mb: 64,
    tty: true,
    hold: false,
    auto_remove: false,
    network: { mode: 'user' },
    kernel_cmdline: '',
    stop_timeout_s: 9,
  }
  insertVm(sqlite, 1, 'small', 'stopped', { spec: JSON.stringify(smaller) })
  insertVm(sqlite, 2, 'odd', 'stopped', { spec: JSON.stringify({ ...smaller, env: { __proto__x: 'x' }, port: 80 }) })
  insertVm(sqlite, 3, 'broken', 'stopped', { spec: JSON.stringify({ ...smaller, memory_mb: 'much' }) })
  sqlite.close()

  opened((store) => {
    const { spec } = find(store, 'small')
    expect(spec.compute).toMatchObject({ cpu_cores: 2, memory_mb: 256, forkable: false })
    expect([spec.workload.env, spec.policy.metadata, spec.network]).toEqual([{}, {}, { mode: 'user' }])
    expect(view(find(store, 'small'))).toMatchObject({
      forkable: false,
      env_names: [],
      metadata: {},
      port: null,
      tty: true,
    })
    expect(view(find(store, 'odd'))).toMatchObject({ env_names: ['__proto__x'], port: 80 })
    expect(() => find(store, 'broken')).toThrow('column spec does not fit its schema at /memory_mb')
  })
})

test('events of a release that gave every event the columns of a vm say the same, in their order', () => {
  const sqlite = older(5)
  for (const [seq, type, name, uid, status, ip, mac, pid, message] of [
    [7, 'VM_RUNNING', 'web', 'vm_1', 'running', '', '02:00:00:00:00:01', 9, ''],
    [9, 'IMAGE_IMPORTED', 'base', null, '', '', '', null, DIGEST],
    [10, 'KERNEL_DELETED', 'k', null, '', '', '', null, DIGEST],
    [12, 'VM_CREATE_FAILED', 'it"s', 'vm_2', 'failed', '', '', null, 'Cannot\nconsole: x'],
  ])
    sqlite.run(
      'INSERT INTO events (seq, type, name, uid, status, ip_address, mac_address, pid, message, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 5)',
      [seq, type, name, uid, status, ip, mac, pid, message] as string[],
    )
  sqlite.close()

  opened((store) => {
    const timestamp = new Date(5).toISOString()
    const none = { uid: null, status: '', ip_address: '', mac_address: '', pid: null, message: DIGEST, digest: DIGEST }
    expect(store.events.after(0, 10)).toEqual([
      {
        seq: 7,
        type: 'VM_RUNNING',
        name: 'web',
        uid: 'vm_1',
        status: 'running',
        ip_address: '',
        mac_address: '02:00:00:00:00:01',
        pid: 9,
        message: '',
        timestamp,
      },
      { ...none, seq: 9, type: 'IMAGE_IMPORTED', name: 'base', timestamp },
      { ...none, seq: 10, type: 'KERNEL_DELETED', name: 'k', timestamp },
      {
        seq: 12,
        type: 'VM_CREATE_FAILED',
        name: 'it"s',
        uid: 'vm_2',
        status: 'failed',
        ip_address: '',
        mac_address: '',
        pid: null,
        message: 'Cannot\nconsole: x',
        timestamp,
      },
    ])
    expect(store.events.after(0, 10, { noun: 'vm' }).map((event) => event.seq)).toEqual([7, 12])
    immediate(store, (tx) => {
      tx.events.append(tx, vmEvents, { type: 'VM_CREATED', name: 'new' })
    })
    expect(store.events.newest()).toBe(13)
  })
})
