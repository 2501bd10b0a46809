import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { connect } from '../../src/client/client.ts'
import type { Vm, VmUpdate } from '../../src/contract/vm.ts'
import type { VmCreate } from '../../src/contract/vm-spec.ts'
import {
  AERIE,
  clean,
  createVm,
  haveBinary,
  machinesOf,
  seedFake,
  startDaemon,
  until,
  type Daemon,
} from '../e2e/daemon.ts'
import { Netns } from '../linux/netns.ts'
import { isRoot } from '../linux/support.ts'

const at = (name: string) => ({ params: { name } })
/** Listens at a port until it is ended. */
const LISTENER = `import socket, time
s = socket.socket(); s.bind(('127.0.0.1', 7999)); s.listen(); print('on', flush=True); time.sleep(1000)`
/** Room for many vms at once. */
const FLAGS = ['--memory-limit-mb', '8192', '--cpu-oversubscription', '64']
const refused = (code: string, words: string) =>
  expect.objectContaining({ code, message: expect.stringContaining(words) as unknown }) as unknown as Error

/** The compiled file on the fake driver, whose machines hold real taps, in a network namespace of the test's own. */
describe.skipIf(!haveBinary || !isRoot)('networks', () => {
  let netns: Netns
  let daemon: Daemon
  const create = (body: VmCreate): Promise<Vm> => createVm(daemon, { memory_mb: 64, cmd: ['sleep', '1000'], ...body })
  const network = (body: Parameters<typeof daemon.client.call<'network.create'>>[1]['body']) =>
    daemon.client.call('network.create', { body })
  const linkNames = (): string[] => netns.ip('link').map(({ ifname }) => String(ifname))
  const tableNames = (): string => netns.run('nft', 'list', 'tables')

  beforeAll(async () => {
    netns = new Netns()
    netns.run('ip', 'link', 'set', 'lo', 'up')
    daemon = await startDaemon({
      fake: true,
      netns: netns.path,
      flags: FLAGS,
    })
    await seedFake(daemon)
  })
  afterEach(async () => {
    const vms = await daemon.client.call('vm.list', {})
    await Promise.all(vms.map((vm) => daemon.client.call('vm.delete', at(vm.name))))
    await until(() => linkNames().every((name) => !name.startsWith('tap-')))
    for (const { name } of await daemon.client.call('network.list', {}))
      await daemon.client.call('network.delete', at(name))
    expect(linkNames().filter((name) => name !== 'lo')).toEqual([])
  })
  afterAll(async () => {
    await clean(daemon)
    netns[Symbol.dispose]()
  })

  test('a vm that asks for nothing is in the default network, which is made for it', async () => {
    const vm = await create({ name: 'web' })

    expect(vm.ip_address).toBe('10.42.0.2')
    expect(vm.network).toMatchObject({ mode: 'bridged', network: 'default', ip_address: '10.42.0.2' })
    expect(await daemon.client.call('network.get', at('default'))).toMatchObject({
      default: true,
      bridge: 'aerie0',
      subnet: '10.42.0.0/24',
      gateway: '10.42.0.1',
      pool: { start: '10.42.0.2', end: '10.42.0.254' },
      addresses_used: 1,
      addresses_total: 253,
      leases: [{ name: 'web', kind: 'vm', ip_address: '10.42.0.2', mac_address: vm.mac_address }],
    })
    const tap = linkNames().find((name) => name.startsWith('tap-'))
    expect(tap?.length).toBeLessThanOrEqual(15)
    expect(netns.ip('link', 'show', tap ?? '')[0]).toMatchObject({ master: 'aerie0' })
    expect(tableNames()).toMatch(/table inet aerie-[0-9a-f]{8}/)
  })

  test('a range that this host routes already is passed over', async () => {
    netns.run('ip', 'link', 'add', 'other', 'type', 'veth', 'peer', 'name', 'other2')
    try {
      netns.run('ip', 'addr', 'add', '10.42.0.9/16', 'dev', 'other')
      netns.run('ip', 'link', 'set', 'other', 'up')
      expect((await create({ name: 'web' })).ip_address).toBe('10.43.0.2')
    } finally {
      netns.run('ip', 'link', 'del', 'other')
    }
  })

  test('vms at once have addresses of their own, and keep them when the daemon has been killed', async () => {
    const vms = await Promise.all(Array.from({ length: 40 }, (_, index) => create({ name: `vm-${index}` })))
    const addresses = new Map(vms.map((vm) => [vm.name, vm.ip_address]))
    expect(new Set(addresses.values()).size).toBe(40)
    expect([...addresses.values()].every((one) => /^10\.42\.0\.\d+$/.test(one))).toBe(true)
    expect(new Set(vms.map((vm) => vm.mac_address)).size).toBe(40)

    await daemon.crash()
    daemon = await startDaemon({
      fake: true,
      netns: netns.path,
      folder: daemon.folder,
      flags: FLAGS,
    })

    for (const vm of await daemon.client.call('vm.list', {})) expect(vm.ip_address).toBe(addresses.get(vm.name) ?? '')
    expect(linkNames().filter((name) => name.startsWith('tap-'))).toHaveLength(40)
    expect((await create({ name: 'late' })).ip_address).toBe('10.42.0.42')
  })

  test('a reserved address is kept for its name, and a static one is given where it is free', async () => {
    await network({ name: 'lab', subnet: '10.50.0.0/24', reservations: { db: '10.50.0.2' } })

    expect((await create({ name: 'a', network: { network: 'lab' } })).ip_address).toBe('10.50.0.3')
    expect((await create({ name: 'db', network: { network: 'lab' } })).ip_address).toBe('10.50.0.2')
    expect((await create({ name: 'b', network: { network: 'lab', ip_address: '10.50.0.77' } })).ip_address).toBe(
      '10.50.0.77',
    )
    for (const [ip_address, words] of [
      ['10.50.0.2', 'it is reserved for "db"'],
      ['10.50.0.77', '"b" has it'],
      ['10.50.0.1', 'it is the gateway'],
      ['10.50.0.255', 'it is the broadcast address'],
      ['10.51.0.2', 'it is outside of 10.50.0.0/24'],
    ] as const)
      await expect(create({ name: 'c', network: { network: 'lab', ip_address } })).rejects.toThrow(
        refused('network_address_taken', words),
      )
    await until(async () => (await daemon.client.call('vm.list', {})).length === 3)
  })

  test('a name that comes back soon has its address again, and others get the next', async () => {
    expect((await create({ name: 'one' })).ip_address).toBe('10.42.0.2')
    await daemon.client.call('vm.delete', at('one'))

    expect((await create({ name: 'two' })).ip_address).toBe('10.42.0.3')
    expect((await create({ name: 'one' })).ip_address).toBe('10.42.0.2')
  })

  test('a network that is full says so, with its size and use; a name that may come back holds nobody up', async () => {
    await network({ name: 'tiny', subnet: '10.60.0.0/29', pool: { start: '10.60.0.2', end: '10.60.0.3' } })
    await create({ name: 'a', network: { network: 'tiny' } })
    await create({ name: 'b', network: { network: 'tiny' } })

    await expect(create({ name: 'c', network: { network: 'tiny' } })).rejects.toThrow(
      refused('network_exhausted', 'Network "tiny" has no address left: 2 of 2 are in use'),
    )
    await daemon.client.call('vm.delete', at('a'))
    expect((await create({ name: 'c', network: { network: 'tiny' } })).ip_address).toBe('10.60.0.2')
  })

  test('a vm may have several cards, each in a network of its own', async () => {
    await network({ name: 'back', type: 'isolated' })

    const vm = await create({ name: 'web', network: { mode: 'bridged' }, nics: [{ network: 'back' }] })

    expect(vm.nics).toMatchObject([{ network: 'back', ip_address: expect.stringMatching(/^10\.42\.0\./) as unknown }])
    expect(linkNames().filter((name) => name.startsWith('tap-'))).toHaveLength(1) // the other is in its network's namespace
    expect(await daemon.client.call('network.get', at('back'))).toMatchObject({ leases: [{ name: 'web' }] })
  })

  test('a stop takes the link away and keeps the address, a start brings it back', async () => {
    const { ip_address } = await create({ name: 'web' })
    await daemon.client.call('vm.stop', { ...at('web'), body: { timeout_s: 0 } })
    await until(() => linkNames().every((name) => !name.startsWith('tap-')))

    expect((await daemon.client.call('vm.start', at('web'))).ip_address).toBe(ip_address)
    expect(linkNames().filter((name) => name.startsWith('tap-'))).toHaveLength(1)
  })

  test('clones have addresses of their own, in the networks of their mother', async () => {
    await network({ name: 'lab', subnet: '10.50.0.0/24' })
    await create({ name: 'mother', network: { network: 'lab', ip_address: '10.50.0.40' } })

    const { vms } = await daemon.client.call('vm.fork', { ...at('mother'), body: { name: 'child', count: 3 } })

    expect(vms.map((vm) => vm.ip_address)).toEqual(['10.50.0.2', '10.50.0.3', '10.50.0.4'])
    expect(vms.every((vm) => vm.network?.network === 'lab')).toBe(true)
  })

  test('a network in use stays, and its file goes out and comes in as it was', async () => {
    const file = {
      network: 'volt0',
      subnet: '10.70.0.0/24',
      gateway: '10.70.0.1',
      pool: { start: '10.70.0.2', end: '10.70.0.254' },
      reservations: { 'vm-web': '10.70.0.10', 'container-db': '10.70.0.20' },
    }
    await daemon.client.call('network.import', { body: file })
    expect(await daemon.client.call('network.export', at('volt0'))).toEqual(file)
    await create({ name: 'vm-web', network: { network: 'volt0' } })

    await expect(daemon.client.call('network.delete', at('volt0'))).rejects.toThrow(
      refused('network_in_use', 'vm "vm-web" is in it'),
    )
    await expect(daemon.client.call('network.import', { body: file })).rejects.toThrow(
      refused('network_exists', 'there is one'),
    )
  })

  test('ports of the host lead into a vm for as long as it is there, and nobody else has them', async () => {
    const busy = Bun.spawn(['nsenter', `--net=${netns.path}`, 'python3', '-c', LISTENER], {
      stdout: 'pipe',
      stderr: 'ignore',
    })
    try {
      await busy.stdout.getReader().read()
      const web = await create({ name: 'web', publish: ['8080:80', '0.0.0.0:9000-9001:90-91', '0:53/udp'] })
      expect(web.publish).toEqual([
        '8080:80/tcp',
        '0.0.0.0:9000:90/tcp',
        '0.0.0.0:9001:91/tcp',
        expect.stringMatching(/^[1-9]\d+:53\/udp$/),
      ] as never)
      expect(netns.run('ss', '-Hltn')).toContain('127.0.0.1:8080')
      expect(netns.run('ss', '-Hltn')).toContain('[::1]:8080')
      expect(netns.run('nft', 'list', 'ruleset')).toMatch(/9000 : 10\.42\.0\.2 \. 90/)

      for (const [publish, by] of [
        [['8080:81'], 'vm "web" has it'],
        [['9000:1'], 'vm "web" has it'],
        [['127.0.0.1:7999:80'], /python3 \(pid \d+\) has it/],
      ] as const)
        expect(
          await create({ name: 'b', publish: [...publish] }).then(String, (error: Error) => error.message),
        ).toMatch(by)
      expect(
        await create({ name: 'b', publish: ['203.0.113.9:80:80'] }).then(String, (error: unknown) => error),
      ).toEqual(refused('request_invalid', 'this host has no address 203.0.113.9'))
      expect(
        await create({ name: 'b', network: { mode: 'vsock' }, publish: ['80'] }).then(
          String,
          (error: unknown) => error,
        ),
      ).toEqual(refused('request_invalid', 'bridged or host-only'))

      await daemon.crash()
      daemon = await startDaemon({ fake: true, netns: netns.path, folder: daemon.folder, flags: FLAGS })
      expect(
        (await daemon.client.call('port.list', { query: { vm: 'web' } })).map((one) => one.guest_port).sort(),
      ).toEqual([53, 53, 80, 80, 90, 91])
      expect(netns.run('ss', '-Hltn')).toContain('127.0.0.1:8080')
      expect(await create({ name: 'b', publish: ['9001:1'] }).then(String, (error: Error) => error.message)).toContain(
        'vm "web" has it',
      )

      await daemon.client.call('vm.delete', at('web'))
      expect(await daemon.client.call('port.list', {})).toEqual([])
      await until(() => !netns.run('ss', '-Hltn').includes('127.0.0.1:8080'))
      expect(netns.run('nft', 'list', 'ruleset')).not.toContain('10.42.0.2 . 90')
      expect((await create({ name: 'b', publish: ['8080:80', '9000:90'] })).publish).toEqual([
        '8080:80/tcp',
        '9000:90/tcp',
      ])
    } finally {
      busy.kill()
    }
  })

  test('doctor names the rule of another program that is in the way, and the line that heals it', async () => {
    await create({ name: 'web' })
    netns.run('iptables', '-P', 'FORWARD', 'DROP')
    try {
      const { checks } = await daemon.client.call('system.doctor', {})
      expect(checks.find(({ name }) => name === 'networks')).toMatchObject({ status: 'ok' })
      expect(checks.filter(({ name }) => name === 'firewall')).toContainEqual(
        expect.objectContaining({
          status: 'warn',
          message: expect.stringContaining(
            'The chain ip filter FORWARD has the policy drop: guests of aerie0',
          ) as unknown,
          hint: expect.stringContaining('aerie0') as unknown,
        }),
      )
    } finally {
      netns.run('iptables', '-P', 'FORWARD', 'ACCEPT')
    }
  })

  test('a container is attached to the link of the vms, with an address and a way out, and detached', async () => {
    using container = new Netns()
    await create({ name: 'web' })
    const attach = (body: Parameters<typeof daemon.client.call<'network.attach'>>[1]['body']) =>
      daemon.client.call('network.attach', { ...at('default'), body })

    const lease = await attach({ container: 'db', netns: container.path, ip_address: '10.42.0.20' })

    expect(lease).toMatchObject({ name: 'db', kind: 'container', ip_address: '10.42.0.20' })
    expect(lease.link).toMatch(/^veth-[0-9a-f]{8}-h$/)
    expect(netns.ip('link', 'show', lease.link)[0]).toMatchObject({ master: 'aerie0' })
    expect(container.ip('link', 'show', lease.container_link ?? '')[0]).toMatchObject({ address: lease.mac_address })
    const [{ addr_info }] = container.ip('addr', 'show', lease.container_link ?? '') as unknown as [
      { addr_info: unknown[] },
    ]
    expect(addr_info).toContainEqual(expect.objectContaining({ local: '10.42.0.20', prefixlen: 24 }))
    expect(container.ip('route')).toContainEqual(expect.objectContaining({ dst: 'default', gateway: '10.42.0.1' }))
    container.run('busybox', 'ping', '-c', '1', '-W', '2', '10.42.0.1')
    expect(container.run('busybox', 'nslookup', 'web.default.aerie', '10.42.0.1')).toContain('10.42.0.2')
    expect((await daemon.client.call('network.get', at('default'))).leases.map(({ name }) => name).sort()).toEqual([
      'db',
      'web',
    ])

    for (const [body, code, words] of [
      [{ container: 'db' }, 'attachment_exists', 'there is a container of this name'],
      [{ container: 'web' }, 'attachment_exists', 'there is a vm of this name'],
      [{ container: 'x', ip_address: '10.42.0.20' }, 'network_address_taken', '"db" has it'],
      [{ container: 'x', netns: '/etc/passwd' }, 'network_invalid', 'is no network namespace'],
      [{ container: 'x', netns: '/proc/self/ns/mnt' }, 'network_invalid', 'is a namespace of another kind'],
      [{ container: 'x', netns: '/nowhere' }, 'network_invalid', 'is not there'],
      [{ container: 'x', netns: '999999999' }, 'network_invalid', 'is not there'],
    ] as const)
      expect(await attach(body).then(String, (error: unknown) => error)).toEqual(refused(code, words))
    expect(linkNames().filter((name) => name.startsWith('veth-'))).toEqual([lease.link])
    await expect(daemon.client.call('network.delete', at('default'))).rejects.toThrow(
      refused('network_in_use', 'container "db"'),
    )

    const left = await attach({ container: 'moved' })
    expect(linkNames()).toContain(left.container_link ?? '')
    for (const name of ['db', 'moved'])
      await daemon.client.call('network.detach', { params: { name: 'default', container: name } })
    expect(linkNames().filter((name) => name.startsWith('veth-'))).toEqual([])
    await expect(
      daemon.client.call('network.detach', { params: { name: 'default', container: 'db' } }),
    ).rejects.toThrow(refused('attachment_not_found', 'There is no container "db"'))
    expect((await attach({ container: 'db' })).ip_address).toBe('10.42.0.20') // it came back soon
    await daemon.client.call('network.detach', { params: { name: 'default', container: 'db' } })
  })

  test('ports, egress and speed of a vm change while it runs, whole or not at all', async () => {
    await create({ name: 'web', publish: ['8080:80', '0.0.0.0:9000:90'] })
    await create({ name: 'other', publish: ['7000:70'] })
    const update = (body: VmUpdate) => daemon.client.call('vm.update', { ...at('web'), body })
    const rules = () => netns.run('nft', 'list', 'ruleset')
    const listening = () => netns.run('ss', '-Hltn')
    const tap =
      (await daemon.client.call('network.get', at('default'))).leases.find(({ name }) => name === 'web')?.link ?? ''

    expect((await update({ publish: ['8080:80', '0.0.0.0:9001:91'] })).publish).toEqual([
      '8080:80/tcp',
      '0.0.0.0:9001:91/tcp',
    ])
    expect(rules()).toContain('9001 : 10.42.0.2 . 91')
    expect(rules()).not.toContain('9000 : 10.42.0.2 . 90')
    expect(listening()).toContain('127.0.0.1:8080')

    for (const [body, code, words] of [
      [{ publish: ['7000:1'] }, 'port_in_use', 'vm "other" has it'],
      [{ publish: ['8080:81'] }, 'request_invalid', 'leads to port 80 of the guest: take it back first'],
      [{ egress: { policy: 'all', allow: [{ name: 'a.b' }] } }, 'request_invalid', 'has a list'],
    ] as const)
      expect(await update(body as never).then(String, (error: unknown) => error)).toEqual(refused(code, words))
    expect((await daemon.client.call('vm.get', at('web'))).publish).toEqual(['8080:80/tcp', '0.0.0.0:9001:91/tcp'])

    await update({ network_bandwidth_download: '80Mbps', egress: { policy: 'none' } })
    expect(netns.run('tc', 'qdisc', 'show', 'dev', tap)).toContain('tbf')
    expect(rules()).toMatch(/set none4 \{[^}]*elements = \{ 10\.42\.0\.2 \}/)
    await update({ publish: [], egress: { policy: 'all' } })
    expect(await daemon.client.call('port.list', { query: { vm: 'web' } })).toEqual([])
    await until(() => !listening().includes('127.0.0.1:8080'))
    expect(listening()).toContain('127.0.0.1:7000')
    expect(rules()).not.toMatch(/set none4 \{[^}]*10\.42\.0\.2/)
  })

  test('a card on a NIC of the host is a link of its own, which goes with its machine', async () => {
    netns.run('ip', 'link', 'add', 'nic0', 'type', 'veth', 'peer', 'name', 'wire0')
    try {
      for (const name of ['nic0', 'wire0']) netns.run('ip', 'link', 'set', name, 'up')
      const made = await network({ name: 'lan', type: 'macvtap', parent: 'nic0' })
      expect(made).toMatchObject({
        bridge: null,
        subnet: null,
        parent: 'nic0',
        parent_mode: 'bridge',
        addresses_total: 0,
      })

      const vm = await create({ name: 'web', network: { network: 'lan' } })

      const tap = linkNames().find((name) => name.startsWith('tap-')) ?? ''
      expect(vm.ip_address).toBe('')
      expect(netns.ip('link', 'show', tap)[0]).toMatchObject({
        link: 'nic0',
        address: vm.mac_address,
        linkinfo: { info_kind: 'macvtap' },
      })
      await daemon.client.call('vm.stop', { ...at('web'), body: { timeout_s: 0 } })
      expect(linkNames()).not.toContain(tap)
      await daemon.client.call('vm.start', at('web'))
      expect(linkNames()).toContain(tap)
      await daemon.client.call('vm.delete', at('web'))
      expect(linkNames().filter((name) => name.startsWith('tap-'))).toEqual([])
      await daemon.client.call('network.delete', at('lan'))

      netns.run('ip', 'link', 'add', 'br9', 'type', 'bridge')
      netns.run('ip', 'link', 'set', 'nic0', 'master', 'br9')
      expect(
        await network({ name: 'lan', type: 'macvtap', parent: 'nic0' }).then(String, (error: unknown) => error),
      ).toEqual(refused('network_conflict', '"nic0" is a port of a bridge'))
    } finally {
      netns.run('ip', 'link', 'del', 'nic0')
      if (linkNames().includes('br9')) netns.run('ip', 'link', 'del', 'br9')
    }
  })

  const BAD: readonly (readonly [string, object, string, string])[] = [
    ['a range that overlaps', { subnet: '10.50.0.128/25' }, 'network_conflict', 'overlaps network "lab"'],
    ['a /31', { subnet: '10.90.0.0/31' }, 'network_invalid', 'no room for a gateway and a vm'],
    ['bits behind the length', { subnet: '10.90.0.1/24' }, 'network_invalid', 'is no range'],
    ['a loopback range', { subnet: '127.0.0.0/24' }, 'network_invalid', 'no range for hosts'],
    ['the range of metadata', { subnet: '169.254.0.0/24' }, 'network_invalid', 'link-local'],
    [
      'a gateway outside',
      { subnet: '10.90.0.0/24', gateway: '10.91.0.1' },
      'network_invalid',
      'outside of 10.90.0.0/24',
    ],
    [
      'a pool outside',
      { subnet: '10.90.0.0/24', pool: { start: '10.90.0.2', end: '10.91.0.9' } },
      'network_invalid',
      'its pool cannot have 10.91.0.9',
    ],
    [
      'a pool backwards',
      { subnet: '10.90.0.0/24', pool: { start: '10.90.0.9', end: '10.90.0.2' } },
      'network_invalid',
      'before it begins',
    ],
    [
      'a gateway in the pool',
      { subnet: '10.90.0.0/24', pool: { start: '10.90.0.1', end: '10.90.0.9' } },
      'network_invalid',
      'has the gateway',
    ],
    [
      'a foreign reservation',
      { subnet: '10.90.0.0/24', reservations: { a: '10.91.0.2' } },
      'network_invalid',
      '"a" cannot have 10.91.0.2',
    ],
    [
      'a reservation twice',
      { subnet: '10.90.0.0/24', reservations: { a: '10.90.0.2', b: '10.90.0.2' } },
      'network_invalid',
      'reserved for "a" and for "b"',
    ],
    ['a name that means something else', { name: 'vsock' }, 'network_invalid', 'stands for a way'],
    ['a name of digits', { name: '17' }, 'network_invalid', 'digits alone'],
    ['a missing parent', { type: 'macvtap', parent: 'nic9' }, 'network_conflict', 'no NIC "nic9"'],
    ['no parent at all', { type: 'macvtap' }, 'network_invalid', 'needs a parent'],
    ['a parent that is of no use', { parent: 'lo' }, 'network_invalid', 'has no parent'],
    [
      'an egress list without a policy for it',
      { egress: { policy: 'all', allow: [{ name: 'a.b' }] } },
      'network_invalid',
      'has a list',
    ],
    [
      'an egress entry of nothing',
      { egress: { policy: 'allow-list', allow: [{ ports: '80' }] } },
      'network_invalid',
      'needs a cidr or a name',
    ],
    ['a prefix that is none', { ipv6: 'fd00:1:2:3:4::/64' }, 'network_invalid', 'no prefix of 64 bits'],
  ]
  test('what cannot be is refused in words, and changes nothing', async () => {
    await network({ name: 'lab', subnet: '10.50.0.0/24' })
    const before = [linkNames(), netns.run('nft', 'list', 'tables')]
    for (const [, body, code, words] of BAD)
      expect(await network({ name: 'bad', ...body }).then(String, (error: unknown) => error)).toEqual(
        refused(code, words),
      )
    expect((await daemon.client.call('network.list', {})).map(({ name }) => name)).toEqual(['lab'])
    expect([linkNames(), netns.run('nft', 'list', 'tables')]).toEqual(before)
  })

  test('what a card cannot be is refused before there is a vm', async () => {
    for (const [body, code, words] of [
      [{ network: { network: 'nowhere' } }, 'network_not_found', 'There is no network "nowhere"'],
      [{ network: { mode: 'vsock' }, nics: [{}] }, 'request_invalid', 'has no card'],
      [{ network: { mode: 'vsock', ip_address: '10.42.0.9' } }, 'request_invalid', 'has no card'],
    ] as const)
      expect(await create({ name: 'bad', ...(body as VmCreate) }).then(String, (error: unknown) => error)).toEqual(
        refused(code, words),
      )
    expect(await daemon.client.call('vm.list', {})).toEqual([])
  })

  test('a bridge that was deleted by hand, its address or a port is put back while vms run', async () => {
    for (const name of ['one', 'two']) await create({ name })
    const taps = () => linkNames().filter((name) => name.startsWith('tap-'))
    const whole = () => {
      expect(taps()).toHaveLength(2)
      for (const tap of taps())
        expect(netns.ip('link', 'show', tap)[0]).toMatchObject({
          master: 'aerie0',
          flags: expect.arrayContaining(['UP']),
        })
      expect(JSON.stringify(netns.ip('addr', 'show', 'aerie0'))).toContain('"10.42.0.1"')
      expect(netns.run('ss', '-Hlnu')).toContain('10.42.0.1:53')
      expect(netns.run('ss', '-Hlnu')).toContain('%aerie0:67')
    }
    const [tap = ''] = taps()
    whole()
    for (const damage of [
      ['link', 'del', 'aerie0'],
      ['addr', 'del', '10.42.0.1/24', 'dev', 'aerie0'],
      ['link', 'set', tap, 'nomaster'],
      ['link', 'set', tap, 'down'],
    ]) {
      netns.run('ip', ...damage)
      await daemon.crash()
      daemon = await startDaemon({ folder: daemon.folder, fake: true, netns: netns.path, flags: FLAGS })
      whole()
    }
  })

  test('networks that go while vms come leave whole networks or none', async () => {
    for (let round = 0; round < 5; round++) {
      await network({ name: 'lab', subnet: '10.50.0.0/24' })
      const [gone, ...made] = await Promise.allSettled([
        daemon.client.call('network.delete', at('lab')),
        ...Array.from({ length: 3 }, (_, index) => create({ name: `v${index}`, network: { network: 'lab' } })),
        daemon.client.call('network.update', { ...at('lab'), body: { egress: { policy: 'none' } } }),
      ])
      const refusals = [gone, ...made].flatMap((one) =>
        one?.status === 'rejected' ? [(one.reason as { code?: string }).code] : [],
      )
      expect(refusals.filter((code) => code !== 'network_not_found' && code !== 'network_in_use')).toEqual([])
      const there = (await daemon.client.call('network.list', {})).map(({ name }) => name)
      expect(there).toEqual(gone?.status === 'fulfilled' ? [] : ['lab'])
      expect(machinesOf(daemon.state)).toHaveLength((await daemon.client.call('vm.list', {})).length + there.length)
      for (const vm of await daemon.client.call('vm.list', {})) await daemon.client.call('vm.delete', at(vm.name))
      if (there.length > 0) await daemon.client.call('network.delete', at('lab'))
      expect(linkNames()).toEqual(['lo'])
    }
  }, 60_000)

  test('vms at once that need the default network while it goes have one', async () => {
    await create({ name: 'first' })
    await daemon.client.call('vm.delete', at('first'))

    const [, ...made] = await Promise.all([
      daemon.client.call('network.delete', at('default')),
      ...Array.from({ length: 3 }, (_, index) => create({ name: `v${index}` })),
    ])
    expect(made.map(({ network }) => network?.network)).toEqual(['default', 'default', 'default'])
  })

  test('a name is made once', async () => {
    const made = await Promise.allSettled(Array.from({ length: 10 }, () => network({ name: 'lab' })))

    expect(made.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
    for (const one of made)
      if (one.status === 'rejected') expect(one.reason).toEqual(refused('network_exists', 'there is one'))
    expect(machinesOf(daemon.state)).toHaveLength(1)
  })

  for (const signal of ['SIGKILL', 'SIGSTOP'] as const)
    test(`a helper that got ${signal} holds nobody up, and another comes`, async () => {
      const { uid } = await network({ name: 'lab', subnet: '10.50.0.0/24' })
      const [helper = 0] = machinesOf(daemon.state)
      process.kill(helper, signal)

      await create({ name: 'web', network: { network: 'lab' } })
      await daemon.client.call('vm.delete', at('web'))
      await until(() => {
        const there = machinesOf(daemon.state)
        return there.length === 1 && !there.includes(helper) && existsSync(join(daemon.run, 'net', uid))
      }, 25)
      const listening = () => netns.run('ss', '-Hlntu', 'sport', '=', ':53')
      await until(() => listening().includes('10.50.0.1:53'), 10)
      await daemon.client.call('network.delete', at('lab'))
      expect(machinesOf(daemon.state)).toEqual([])
      expect(listening()).toBe('')
    }, 60_000)

  test('a daemon without the right to change links says so, and keeps nothing of what it could not make', async () => {
    const folder = mkdtempSync('/tmp/aerie-t-')
    const socket = join(folder, 'run', 'aerie.sock')
    const argv = ['serve', '--state', join(folder, 'state'), '--run', join(folder, 'run'), '--hypervisor', 'fake']
    const weak = Bun.spawn(
      ['nsenter', `--net=${netns.path}`, 'setpriv', '--bounding-set=-net_admin,-sys_admin', AERIE, ...argv],
      { cwd: '/', env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' }, stdio: ['ignore', 'ignore', 'pipe'] },
    )
    try {
      await until(
        async () => (await fetch('http://localhost/healthz', { unix: socket }).catch(() => undefined))?.ok === true,
      )
      const { call } = connect({ kind: 'unix', path: socket })
      for (const type of ['bridged', 'host-only', 'isolated'] as const) {
        const said = await call('network.create', { body: { name: 'lab', type } }).then(
          String,
          (error: unknown) => error,
        )
        expect(said).toMatchObject({ code: 'network_unable', hint: 'Run it as root, or with CAP_NET_ADMIN' })
        expect(await call('network.list', {})).toEqual([])
      }
    } finally {
      weak.kill()
      await weak.exited
      rmSync(folder, { recursive: true })
    }
  })

  test('any number of vms without a card cost no link', async () => {
    await Promise.all(
      Array.from({ length: 10 }, (_, index) => create({ name: `v${index}`, network: { mode: 'vsock' } })),
    )

    expect(linkNames()).toEqual(['lo'])
    expect((await daemon.client.call('vm.list', {})).every((vm) => vm.ip_address === '')).toBe(true)
  })
})
