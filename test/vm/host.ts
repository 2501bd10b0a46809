import { mkdtempSync, mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { readConfig } from '../../src/config.ts'
import { fill } from '../../src/contract/schema.ts'
import { specOf, type VmCreate, VmFields } from '../../src/contract/vm-spec.ts'
import type { Host } from '../../src/host.ts'
import { Hypervisors } from '../../src/hypervisor/hypervisors.ts'
import { Images } from '../../src/image/images.ts'
import { Kernels } from '../../src/kernel/kernels.ts'
import { newLog } from '../../src/lib/log.ts'
import { Serial } from '../../src/lib/serial.ts'
import { Networks } from '../../src/network/networks.ts'
import { Snapshots } from '../../src/snapshot/snapshots.ts'
import { Ballast } from '../../src/store/ballast.ts'
import { EventLog } from '../../src/store/event-log.ts'
import { boots, images, imageNames, kernels, vms, type BootRow, type VmRow } from '../../src/store/schema.ts'
import { openStore } from '../../src/store/open.ts'
import { pathsOf } from '../../src/vm/row/layout.ts'

export const DIGEST = `sha256:${'0'.repeat(64)}`

/** Counts who waits for events: each costs memory until the next one. */
class CountedEvents extends EventLog {
  waiting = 0

  override async appended(signal: AbortSignal): Promise<void> {
    this.waiting++
    try {
      await super.appended(signal)
    } finally {
      this.waiting--
    }
  }
}

/** Columns of a vm, and of its boot. */
type RowOf = Partial<typeof vms.$inferInsert> & { readonly boot?: Partial<BootRow> }

export interface TestHost extends AsyncDisposable {
  readonly host: Host
  readonly events: CountedEvents
  /** Inserts a row as it is, with the defaults of the contract. */
  vm(name: string, row?: RowOf, want?: VmCreate): VmRow
  paths(row: VmRow): ReturnType<typeof pathsOf>
}

/**
 * The daemon's record over a real store in a folder of the test's own, without drivers: rows and files, no machines.
 */
export const testHost = (flags: Readonly<Record<string, unknown>> = {}): TestHost => {
  const folder = mkdtempSync('/tmp/aerie-u-')
  const config = readConfig(
    { config: '/dev/null', state: join(folder, 's'), default_network: 'vsock', ...flags },
    {},
    0,
  )
  mkdirSync(join(config.state, 'vms'), { recursive: true })
  const opened = openStore(join(config.state, 'state.db'))
  const events = new CountedEvents(opened)
  const store = Object.assign(opened, { events })
  const host: Host = {
    config,
    log: newLog('silent'),
    daemon: { stateId: '0'.repeat(16), version: '0', startedAt: 0, step: () => undefined },
    store,
    ballast: new Ballast(config.state),
    images: new Images(store, config.state),
    kernels: new Kernels(store, config.state),
    snapshots: new Snapshots(store, config.state),
    hypervisors: new Hypervisors([], { name: 'fake', accelerator: 'none', reason: 'a test' }),
    networks: new Networks({ store, config, stateId: '0'.repeat(16), log: newLog('silent'), step: () => undefined }),
    vms: { queue: new Serial(), live: new Map() },
  }
  store
    .insert(images)
    .values({
      digest: DIGEST,
      format: 'rootfs',
      erofsDigest: '0'.repeat(64),
      sizeBytes: 0,
      status: 'ready',
      createdAt: 0,
      config: { entrypoint: [], cmd: [], env: [], user: '', working_dir: '', stop_signal: '', exposed_ports: [] },
    })
    .run()
  store.insert(imageNames).values({ name: 'base', digest: DIGEST }).run()
  store
    .insert(kernels)
    .values({
      digest: DIGEST,
      name: 'k',
      version: '1',
      format: 'bzimage',
      modules: [],
      sizeBytes: 0,
      isDefault: true,
      createdAt: 0,
    })
    .run()

  let count = 0
  return {
    host,
    events,
    vm: (name, { boot, ...row } = {}, want = {}) => {
      const id = ++count
      const spec = specOf(fill(VmFields, want))
      const made = store
        .insert(vms)
        .values({
          uid: `vm_${String(id).padStart(20, '0')}`,
          name,
          state: 'running',
          spec,
          runtime: 'vm',
          hypervisor: 'fake',
          imageDigest: DIGEST,
          kernelDigest: DIGEST,
          cpuCores: spec.compute.cpu_cores,
          memoryMb: spec.compute.memory_mb,
          cid: id + 2,
          mac: `02:00:00:00:00:${id.toString(16).padStart(2, '0')}`,
          machineId: '0'.repeat(32),
          createdAt: id,
          updatedAt: id,
          ...row,
        })
        .returning()
        .get()
      return {
        ...made,
        boot: store
          .insert(boots)
          .values({ ...boot, vmUid: made.uid })
          .returning()
          .get(),
      }
    },
    paths: (row) => {
      const at = pathsOf(config, row)
      mkdirSync(at.folder, { recursive: true })
      return at
    },
    [Symbol.asyncDispose]: async () => {
      await host.vms.queue.idle()
      store.$client.close()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}
