import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import type { Client } from '../../src/client/client.ts'
import { clean, haveBinary, seedFake, startDaemon, until, type Daemon } from '../e2e/daemon.ts'
import { Netns } from '../linux/netns.ts'
import { isRoot } from '../linux/support.ts'

const at = (name: string) => ({ params: { name } })
const VM = { name: 'v', memory_mb: 64, cmd: ['sleep', '1000'], publish: ['8080:80', '0.0.0.0:9000:90'] }
const create = (client: Client) => client.call('vm.create', { body: VM })

/** The compiled file on the fake driver with real links, killed at every step that changes them. */
describe.skipIf(!haveBinary || !isRoot)('a crash among networks', () => {
  let netns: Netns
  let daemon: Daemon
  const links = (): string[] =>
    netns
      .ip('link')
      .map(({ ifname }) => String(ifname))
      .filter((name) => name !== 'lo')
  const listening = (): string => netns.run('ss', '-Hltn')
  const start = async (flags: readonly string[] = []) => {
    daemon = await startDaemon({ fake: true, netns: netns.path, folder: daemon.folder, flags })
  }

  beforeAll(async () => {
    netns = new Netns()
    netns.run('ip', 'link', 'set', 'lo', 'up')
    daemon = await startDaemon({ fake: true, netns: netns.path })
    await seedFake(daemon)
    await daemon.crash()
  })
  afterAll(async () => {
    await clean(daemon)
    netns[Symbol.dispose]()
  })

  /** Does something under a daemon that ends at a step, and then under one that does not. */
  const crashing = async (step: string, work: (client: Client) => Promise<unknown>): Promise<void> => {
    await start(['--crash-at', step])
    await work(daemon.client).catch(() => undefined)
    expect(await daemon.exited).toBe(137)
    await start()
  }
  const settled = async (): Promise<void> => {
    await until(() => links().every((name) => !name.startsWith('tap-')))
    expect(await daemon.client.call('port.list', {})).toEqual([])
    expect(listening()).not.toContain(':8080')
    expect(netns.run('nft', 'list', 'ruleset')).not.toMatch(/9000 : 10\.42/)
    for (const { name } of await daemon.client.call('network.list', {}))
      await daemon.client.call('network.delete', at(name))
    expect(links()).toEqual([])
    await daemon.crash()
  }

  test.each(['network-recorded', 'network-brought', 'row-inserted', 'published', 'prepared', 'port-guarded'])(
    'in a create, at %s: no link, no port and no lease is left, and the next one has all of them',
    async (step) => {
      await crashing(step, create)
      expect(await daemon.client.call('vm.list', {})).toEqual([])

      const made = await create(daemon.client)

      expect(made.ip_address).toBe('10.42.0.2')
      expect(links().filter((name) => name.startsWith('tap-'))).toHaveLength(1)
      expect(listening()).toContain('127.0.0.1:8080')
      expect(netns.run('nft', 'list', 'ruleset')).toMatch(/9000 : 10\.42\.0\.2 \. 90/)
      await daemon.client.call('vm.delete', at('v'))
      await settled()
    },
    60_000,
  )

  test.each(['deleting', 'machine-gone', 'before-files-removed', 'files-removed'])(
    'in a delete, at %s: the vm goes with its link and its ports',
    async (step) => {
      await start()
      await create(daemon.client)
      await daemon.crash()
      await crashing(step, (client) => client.call('vm.delete', at('v')))
      await until(async () => (await daemon.client.call('vm.list', {})).length === 0)
      await settled()
    },
    60_000,
  )

  test.each(['network-dropped', 'network-unlinked'])(
    'in the deletion of a network, at %s: it is there whole, and can be deleted',
    async (step) => {
      await start()
      await daemon.client.call('network.create', { body: { name: 'lab' } })
      await daemon.crash()
      await crashing(step, (client) => client.call('network.delete', at('lab')))
      expect(links()).toEqual(['aerie0'])
      expect(netns.run('ss', '-Hlun')).toContain('10.42.0.1:53')
      await settled()
    },
    60_000,
  )

  test('in a change of ports: the ports are those of the row', async () => {
    await start()
    await create(daemon.client)
    await daemon.crash()
    await crashing('updated', (client) =>
      client.call('vm.update', { ...at('v'), body: { publish: ['8081:80', '0.0.0.0:9001:90'] } }),
    )

    expect((await daemon.client.call('vm.get', at('v'))).publish).toEqual(['8081:80/tcp', '0.0.0.0:9001:90/tcp'])
    expect(listening()).toContain('127.0.0.1:8081')
    expect(listening()).not.toContain('127.0.0.1:8080')
    expect(netns.run('nft', 'list', 'ruleset')).toMatch(/9001 : 10\.42\.0\.2 \. 90/)
    expect(netns.run('nft', 'list', 'ruleset')).not.toMatch(/9000 : 10\.42/)
    await daemon.client.call('vm.delete', at('v'))
    await settled()
  }, 60_000)
})
