import { describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { End, HypervisorDriver, Machine, MachineSpec } from '../../../src/hypervisor/driver.ts'
import { Hypervisors } from '../../../src/hypervisor/hypervisors.ts'
import { boot } from '../../../src/vm/machine/boot.ts'
import { byUid } from '../../../src/vm/row/lookup.ts'
import { DIGEST, testHost } from '../host.ts'

const IDENTITY = { bootId: 'b', process: { pid: 7, startTime: '1' }, helpers: [], folder: '/f', uuid: 'u' }

/** A vm in `starting` on a driver whose machines are what `start` says. */
const newBed = (start: (spec: MachineSpec) => Promise<Machine>, network: 'vsock' | 'user' = 'vsock') => {
  const bed = testHost()
  const { state } = bed.host.config
  mkdirSync(join(state, 'kernels', DIGEST.slice(7)), { recursive: true })
  writeFileSync(join(state, 'kernels', DIGEST.slice(7), 'modules.tar'), Buffer.alloc(1024)) // an archive of nothing
  const vm = bed.vm('web', { state: 'starting' }, { network: { mode: network } })
  const at = bed.paths(vm)
  const driver: HypervisorDriver = {
    name: 'fake',
    nics: ['user'],
    unlimited: true,
    start,
    adopt: () => Promise.resolve(undefined),
  }
  const host = {
    ...bed.host,
    hypervisors: new Hypervisors([driver], { name: 'fake', accelerator: 'none', reason: 'a test' }),
  }
  return {
    ...bed,
    boot: () => host.vms.queue.run(vm.uid, () => boot(host, vm)),
    /** What is left of the boot. */
    left: async () => {
      await host.vms.queue.idle()
      const row = byUid(host.store, vm.uid)
      return {
        state: row?.state,
        why: row?.statusMessage,
        machine: row?.boot.machine,
        live: host.vms.live.size,
        run: existsSync(at.run),
        events: bed.events.after(0, 10).map((event) => event.type),
      }
    },
  }
}

const machineOf = (more: Partial<Machine>, ended: Promise<End> = new Promise(() => undefined)): Machine =>
  ({ identity: IDENTITY, ended, ...more }) as unknown as Machine

describe('a boot that fails', () => {
  test('before there is a machine leaves no folder, no session and the reason', async () => {
    await using bed = newBed(() => Promise.reject(new Error('no such processor')))

    await expect(bed.boot()).rejects.toMatchObject({ code: 'vm_start_failed' })

    expect(await bed.left()).toEqual({
      state: 'crashed',
      why: 'Cannot start vm "web": no such processor',
      machine: null,
      live: 0,
      run: false,
      events: ['VM_CRASHED'],
    })
  })

  test('because its machine cannot be written down kills the machine all the same', async () => {
    const said: string[] = []
    await using bed = newBed(() =>
      Promise.resolve(
        machineOf({
          identity: { ...IDENTITY, folder: 1n as never },
          kill: () => {
            said.push('killed')
            return Promise.resolve()
          },
        }),
      ),
    )

    await expect(bed.boot()).rejects.toMatchObject({ code: 'vm_start_failed' })

    expect(said).toEqual(['killed'])
    expect(await bed.left()).toMatchObject({ state: 'crashed', machine: null, live: 0, run: false })
  })

  test('because its machine ends kills what is left of it, and says why once', async () => {
    const said: string[] = []
    const end = Promise.withResolvers<End>()
    await using bed = newBed(() => {
      end.resolve({ reason: 'panic', code: null, message: 'no init' })
      return Promise.resolve(
        machineOf(
          {
            kill: () => {
              said.push('killed')
              return Promise.resolve()
            },
          },
          end.promise,
        ),
      )
    })

    await expect(bed.boot()).rejects.toThrow('the machine ended (panic): no init')

    expect(said).toEqual(['killed'])
    expect(await bed.left()).toMatchObject({ state: 'crashed', live: 0, run: false, events: ['VM_CRASHED'] })
  })

  test('and cannot be taken back whole takes back the rest', async () => {
    await using bed = newBed(() =>
      Promise.resolve(
        machineOf(
          { kill: () => Promise.reject(new Error('it does not go')) },
          Promise.resolve({ reason: 'failed', code: 1, message: 'broken' }),
        ),
      ),
    )

    await expect(bed.boot()).rejects.toThrow('broken')

    expect(await bed.left()).toMatchObject({ state: 'crashed', live: 0, run: false })
  })
})

test('a machine is given its disks by their role in order, and a card where its network has one', async () => {
  for (const network of ['vsock', 'user'] as const) {
    const given: MachineSpec[] = []
    await using bed = newBed((spec) => {
      given.push(spec)
      return Promise.reject(new Error('enough'))
    }, network)

    await expect(bed.boot()).rejects.toThrow('enough')

    expect(given[0]?.disks.map(({ serial, readOnly }) => [serial, readOnly])).toEqual([
      ['root', true],
      ['overlay', false],
    ])
    expect(given[0]?.nics).toEqual(network === 'user' ? [{ kind: 'user', mac: '02:00:00:00:00:01' }] : [])
    expect(given[0]?.cgroups).toEqual([])
  }
})
