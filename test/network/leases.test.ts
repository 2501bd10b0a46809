import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { eq } from 'drizzle-orm'
import { fill } from '../../src/contract/schema.ts'
import { Egress } from '../../src/contract/network.ts'
import { allocate, leasesIn } from '../../src/network/leases.ts'
import { openStore } from '../../src/store/open.ts'
import { leases, type NetworkRow, networks } from '../../src/store/schema.ts'
import type { Store } from '../../src/store/store.ts'

const GRACE_MS = 10 * 60_000
let folder: string
let store: Store
let network: NetworkRow

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'aerie-leases-'))
  store = openStore(join(folder, 'state.db'))
  network = store
    .insert(networks)
    .values({
      uid: 'net_1',
      name: 'lab',
      type: 'bridged',
      bridge: 'aerie0',
      subnet: '10.48.0.0/16',
      gateway: '10.48.0.1',
      mac: '02:00:00:00:00:01',
      mtu: 1500,
      spec: {
        pool: { start: '10.48.0.2', end: '10.48.255.254' },
        reservations: {},
        peer: 'open',
        egress: fill(Egress, { policy: 'all' }),
        dhcp: false,
        parent: null,
        parent_mode: null,
      },
      createdAt: 0,
    })
    .returning()
    .get()
})
afterEach(() => {
  store.$client.close()
  rmSync(folder, { recursive: true })
})

const give = (name: string) =>
  allocate(store, network, { kind: 'container', name, vmUid: null, nic: 0, mode: 'bridged', link: `veth-${name}` })
const letGo = (id: number, ago: number) =>
  store
    .update(leases)
    .set({ releasedAt: Date.now() - ago, link: `-${id}`, mac: `-${id}` })
    .where(eq(leases.id, id))
    .run()

test('names that were let go are forgotten after the grace, and a name that is back in time has its address', () => {
  for (let cycle = 0; cycle < 300; cycle++) letGo(give(`old-${cycle}`).id, GRACE_MS + 1000)
  expect(leasesIn(store, network.uid)).toHaveLength(1)

  const { id, address } = give('web')
  letGo(id, GRACE_MS - 60_000)
  expect(give('other').address).not.toBe(address)
  expect(give('web').address).toBe(address)
  expect(leasesIn(store, network.uid).map(({ name, releasedAt }) => [name, releasedAt])).toEqual([
    ['web', null],
    ['other', null],
  ])
})
