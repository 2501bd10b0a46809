import { Database } from 'bun:sqlite'
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { createHash } from 'node:crypto'
import { linkSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  clean,
  createVm,
  haveBinary,
  machinesOf,
  newFolder,
  seedFake,
  startDaemon,
  type Daemon,
} from '../e2e/daemon.ts'
import { ask, portOf } from './http.ts'

const at = (name: string) => ({ params: { name } })
const MIGRATIONS = join(import.meta.dir, '../../src/store/migrations')
/** How many of them the first release that kept memory on disk knew. */
const OLDER = 2

const SPEC = {
  image: 'base',
  cpu_cores: 1,
  memory_mb: 512,
  disk_mb: 64,
  env: { A: 'b' },
  tty: false,
  cmd: ['sleep', '1000'],
  hold: false,
  auto_remove: false,
  network: { mode: 'vsock' },
  kernel_cmdline: '',
  stop_timeout_s: 10,
  boot_timeout_s: 120,
  metadata: {},
}
const ROWS = [
  { id: 1, name: 'asleep', state: 'standby', saved: 'saved-a1' },
  { id: 2, name: 'twin-1', state: 'standby', saved: 'saved-t1', identity_due: 1, forked_from: 'vm_gone' },
  { id: 3, name: 'twin-2', state: 'standby', saved: 'saved-t1', identity_due: 1, forked_from: 'vm_gone' },
  { id: 4, name: 'stopped', state: 'stopped', exit_code: 7, started_at: 1, stopped_at: 2 },
  { id: 5, name: 'crashed', state: 'crashed', exit_message: 'it broke' },
  { id: 6, name: 'ran', state: 'running', started_at: 3, acked_seq: 2, session_secret: '0'.repeat(64) },
]
const uidOf = (id: number) => `vm_${String(id).padStart(20, '0')}`

/** What a machine of the fake driver kept of itself then. */
const savedText = (hostname: string) => {
  const memory = JSON.stringify({
    secret: '0'.repeat(64),
    events: [{ seq: 1, body: { seq: 1, type: 'ready', boot_ms: 40 } }],
    acked: 1,
    seq: 1,
    log: '',
    logEnded: false,
    workload: { argv: ['sleep', '1000'], env: {}, cwd: '/', user: '', tty: false, hold: false, stop_signal: 15 },
    runs: true,
    who: { hostname, machineId: '0'.repeat(32) },
  })
  const state = { shape: '1:512:root,overlay', memory: createHash('sha256').update(memory).digest('hex') }
  return { memory, state: JSON.stringify(state) }
}

/** Makes the state folder of an older release: its database, and where it kept what was saved. */
const older = async (folder: string): Promise<void> => {
  const first = await startDaemon({ folder, fake: true })
  await seedFake(first)
  await createVm(first, { name: 'model', image: 'base', disk_mb: 64 })
  const { uid } = await first.client.call('vm.stop', { ...at('model'), body: {} })
  await first.end()
  const { state } = first
  const now = new Database(join(state, 'state.db'))
  const tables = ['kernels', 'images', 'image_names'].map(
    (table) => [table, now.query(`SELECT * FROM ${table}`).all() as Record<string, string>[]] as const,
  )
  now.close()
  const model = join(state, 'vms', uid)
  for (const { id, name, saved } of ROWS) {
    const own = join(state, 'vms', uidOf(id))
    await Bun.$`cp -a --sparse=always ${model} ${own}`
    if (saved === undefined) continue
    mkdirSync(join(own, saved))
    // The first of some clones has the files, the others have links to them.
    const before = ROWS.find((one) => one.saved === saved && one.id < id)
    for (const [file, text] of Object.entries(savedText(name))) {
      if (before === undefined) writeFileSync(join(own, saved, file), text)
      else linkSync(join(state, 'vms', uidOf(before.id), saved, file), join(own, saved, file))
    }
  }
  for (const name of ['state.db', 'state.db-wal', 'state.db-shm', 'snapshots', 'ballast', join('vms', uid)])
    rmSync(join(state, name), { recursive: true, force: true })
  const then = new Database(join(state, 'state.db'), { create: true, strict: true })
  for (const name of readdirSync(MIGRATIONS).sort().slice(0, OLDER))
    then.run(readFileSync(join(MIGRATIONS, name), 'utf8'))
  then.run(`PRAGMA user_version = ${OLDER}`)
  const insert = (table: string, row: Readonly<Record<string, unknown>>) => {
    const names = Object.keys(row)
    then
      .query(`INSERT INTO ${table} (${names.join()}) VALUES (${names.map(() => '?').join()})`)
      .run(...(Object.values(row) as string[]))
  }
  for (const [table, rows] of tables) for (const row of rows) insert(table, row)
  for (const { id, ...more } of ROWS) {
    insert('vms', {
      id,
      uid: uidOf(id),
      gen: 5,
      spec: JSON.stringify(SPEC),
      runtime: 'vm',
      hypervisor: 'fake',
      image_digest: tables[1]?.[1][0]?.['digest'],
      kernel_digest: tables[0]?.[1][0]?.['digest'],
      cpu_cores: 1,
      memory_mb: 512,
      cid: id + 2,
      mac: `02:00:00:00:00:0${id}`,
      machine_id: '0'.repeat(32),
      was_ready: 1,
      created_at: id,
      updated_at: id,
      ...more,
    })
  }
  const hash = createHash('sha256').update('aerie_old').digest('hex')
  insert('tokens', { name: 'ops', prefix: 'aerie_old', hash, scope: 'read', created_at: 1 })
  then.close()
}

describe.skipIf(!haveBinary)('a state folder that an older release filled', () => {
  let daemon: Daemon
  beforeAll(async () => {
    const folder = newFolder()
    await older(folder)
    daemon = await startDaemon({ folder, fake: true, flags: ['--listen', '127.0.0.1:0'] })
  }, 60_000)
  afterAll(async () => {
    await clean(daemon)
  })
  const status = async () => (await daemon.client.call('vm.list', { query: {} })).map((vm) => `${vm.name} ${vm.status}`)

  test('is listed as it was, but what ran and is not there any more', async () => {
    expect((await status()).sort()).toEqual([
      'asleep standby',
      'crashed crashed',
      'ran crashed',
      'stopped stopped',
      'twin-1 standby',
      'twin-2 standby',
    ])
    expect(await daemon.client.call('vm.get', at('stopped'))).toMatchObject({ exit_code: 7, env_names: ['A'] })
    expect(readdirSync(join(daemon.state, 'snapshots')).length).toBe(2)
  })

  test('its tokens are good', async () => {
    const headers = { authorization: 'Bearer aerie_old' }
    const target = { host: '127.0.0.1', port: portOf(daemon) }

    expect((await ask(target, { path: '/api/v1/vms', headers })).status).toBe(200)
    expect((await ask(target, { path: '/api/v1/vms/asleep', method: 'DELETE', headers })).status).toBe(403)
  })

  test('what slept wakes as itself, and each of some clones alone', async () => {
    for (const name of ['asleep', 'twin-1', 'twin-2']) {
      expect(await daemon.client.call('vm.restore', at(name))).toMatchObject({ status: 'running' })
      expect(await daemon.client.call('vm.exec', { ...at(name), body: { argv: ['hostname'] } })).toMatchObject({
        stdout: `${name}\n`,
      })
    }
    expect(readdirSync(join(daemon.state, 'snapshots'))).toEqual([])
  })

  test('what had ended starts, sleeps and is cloned', async () => {
    for (const name of ['stopped', 'crashed', 'ran']) {
      expect(await daemon.client.call('vm.start', { ...at(name), body: {} })).toMatchObject({ status: 'running' })
      await daemon.client.call('vm.standby', at(name))
      await daemon.client.call('vm.restore', at(name))
    }
    await daemon.client.call('vm.fork', { ...at('ran'), body: { name: 'clone' } })
    expect(await status()).toContain('clone running')
  })

  test('all of it can be deleted, and nothing stays', async () => {
    for (const vm of await daemon.client.call('vm.list', { query: {} }))
      await daemon.client.call('vm.delete', at(vm.uid))
    await daemon.client.call('image.delete', at('base'))

    const left = ['vms', 'snapshots', 'images'].map((name) => readdirSync(join(daemon.state, name)))
    expect([machinesOf(daemon.state), ...left]).toEqual([[], [], [], []])
  })
})
