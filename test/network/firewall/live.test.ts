import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import { openLinks, linkByName, setPort } from '../../../src/linux/netlink/links.ts'
import { Firewall } from '../../../src/network/firewall/live-firewall.ts'
import { isRoot, kernelAtLeast } from '../../linux/support.ts'
import { NETWORK, nicOf, OTHER, World } from './world.ts'

const FORWARDING = join(import.meta.dir, '../../../src/network/firewall/forwarding.ts')
/** Linux keeps others from a table since 6.9, and guards a link that is not there yet since 6.16. */
const KEEPS_TABLES = kernelAtLeast(6, 9)
const GUARDS_NAMES = kernelAtLeast(6, 16)
const REFUSED = 'ConnectionRefusedError 111'

describe.skipIf(!isRoot)('the table that a daemon keeps', () => {
  let world: World
  beforeAll(async () => {
    world = new World()
    await world.outside.listen('tcp', '0.0.0.0', 80)
    await world.outside.listen('tcp', '::', 80)
    await world.host.listen('tcp', '0.0.0.0', 22)
    for (const guest of [world.guests[2], world.guests[3]]) await guest.listen('tcp', '0.0.0.0', 80)
  })
  afterEach(() => {
    if (world.isProtected) world.firewall.remove()
    world.leave()
  })
  afterAll(async () => world[Symbol.asyncDispose]())

  const stands = async () => {
    expect(await world.guests[2].tcp('10.42.0.1', 22)).toBe(REFUSED)
    expect(await world.guests[2].tcp('192.0.2.2', 80)).toBe('hello 192.0.2.1')
  }
  const nft = (...words: string[]) => world.host.netns.run('nft', ...words)

  test.skipIf(!KEEPS_TABLES)('nobody else changes it, nor does it go with what others flush', async () => {
    const firewall = world.protect()
    expect(firewall.isOwned).toBe(true)

    nft('flush', 'ruleset')
    expect(() => nft('delete', 'table', 'inet', 'aerie')).toThrow('Operation not permitted')
    expect(() => nft('flush', 'chain', 'netdev', 'aerie', 'guard')).toThrow('Operation not permitted')
    expect(() => Firewall.open({ table: 'aerie', netns: world.host.netns.fd })).toThrow('EPERM')

    await stands()
  })

  test('two daemons with names of their own are no matter to one another', async () => {
    world.protect()
    using second = Firewall.open({ table: 'aerie-2', netns: world.host.netns.fd })

    second.remove()

    await stands()
    expect(nft('list', 'tables')).not.toContain('aerie-2')
  })

  test('it stays when its daemon ends, and the next one goes on with what it counted and what is published', async () => {
    const before = world.protect()
    before.publish([{ proto: 'tcp', address: '0.0.0.0', port: 8080, target: '10.42.0.2', targetPort: 80 }])
    await world.guests[2].send(`ffffffffffff020000000003${'0800'}${'00'.repeat(46)}`)
    while (before.counters('veth-g2-h')?.mac.packets !== 1) await Bun.sleep(1)
    const { description } = before
    world.leave()

    await stands()
    expect(await world.outside.tcp('192.0.2.1', 8080)).toBe('hello 192.0.2.2')
    const after = world.protect(description)

    await stands()
    expect(await world.outside.tcp('192.0.2.1', 8080)).toBe('hello 192.0.2.2')
    expect(after.counters('veth-g2-h')?.mac.packets).toBe(1)
    expect(after.isOwned).toBe(KEEPS_TABLES)
  })

  test('what was learned outlives the daemon that learned it', async () => {
    const [site, mirror] = ['93.184.216.34', '93.184.216.35']
    const named = {
      policy: 'allow-list',
      allow: [{ name: 'site.example', ports: ['80'] }, { name: 'mirror.example' }],
    } as const
    const nics = [nicOf(2, { egress: named }), nicOf(3, { egress: named })]
    const before = world.protect({ nics })
    before.learn('veth-g2-h', 'site.example', [site], 300)
    before.learn('veth-g2-h', 'mirror.example', [mirror], 300)
    world.leave()

    const after = world.protect({ nics })

    for (const address of [site, mirror]) {
      expect(await world.guests[2].tcp(address, 80)).toBe('hello 192.0.2.1')
      expect(await world.guests[3].tcp(address, 80)).toBe(REFUSED)
    }
    expect(await world.guests[2].tcp(site, 443)).toBe(REFUSED)

    after.learn('veth-g2-h', 'site.example', [site], 300)
    after.rebuild()

    expect(await world.guests[2].tcp(site, 80)).toBe('hello 192.0.2.1')

    after.setEgress('veth-g2-h', { policy: 'none', allow: [] })

    expect(await world.guests[2].tcp(site, 80)).toBe(REFUSED)
  })

  test('where the kernel does not keep others away, what they take is there again', async () => {
    const { promise, resolve } = Promise.withResolvers<unknown>()
    const firewall = world.protect({}, { isOwned: false, onForeignChange: resolve })
    firewall.publish([{ proto: 'tcp', address: '0.0.0.0', port: 8080, target: '192.0.2.2', targetPort: 80 }])
    const before = nft('list', 'ruleset')

    nft('flush', 'ruleset')

    expect(await promise).toBeUndefined()
    expect(nft('list', 'ruleset')).toBe(before)
    await stands()
  })

  test('a change finds out that the table is gone, and makes it whole', async () => {
    const firewall = world.protect({}, { isOwned: false })
    nft('flush', 'ruleset')

    firewall.detach('veth-g3-h')

    await stands()
    expect(firewall.counters('veth-g3-h')).toBeUndefined()
    expect(firewall.counters('veth-g2-h')?.mac.packets).toBe(0)
  })

  test('a flow that is open is not cut by making everything anew', async () => {
    const firewall = world.protect()
    await world.guests[2].ask('hold', 'open', '192.0.2.2', 80, 1)

    firewall.rebuild()

    expect(await world.guests[2].ask('say', 'open', 'still here')).toBe('still here')
  })

  test('what cannot be is refused, and nothing is changed', () => {
    const firewall = world.protect()
    const ruleset = () => nft('list', 'ruleset')
    const before = ruleset()
    const published = { proto: 'tcp', address: '0.0.0.0', port: 80, target: '10.42.0.2', targetPort: 80 } as const

    expect(() => firewall.attach(nicOf(9, { link: 'sixteen-characte' }))).toThrow(RangeError)
    expect(() => firewall.attach(nicOf(9, { addresses: ['10.42.0.256'] }))).toThrow(RangeError)
    expect(() => firewall.attach(nicOf(9, { mac: '02:00:00:00:00' }))).toThrow(RangeError)
    expect(() => firewall.setNetwork({ ...NETWORK, bridge: 'sixteen-characte' })).toThrow(RangeError)
    for (const wrong of [
      { ports: ['0'] },
      { ports: ['70000'] },
      { ports: ['9-1'] },
      { cidr: '10.0.0.0/33' },
      { cidr: 'fd00::/129' },
      { name: 'site.example', ports: ['1-300'] },
    ])
      expect(() => firewall.setEgress('veth-g2-h', { policy: 'allow-list', allow: [wrong] })).toThrow(RangeError)
    for (const wrong of [
      { address: '127.0.0.1' },
      { address: '::1', target: 'fd42::2' },
      { target: 'fd42::2' },
      { portEnd: 79 },
      { portEnd: 70_000 },
      { targetPort: 0 },
    ])
      expect(() => firewall.publish([{ ...published, ...wrong }])).toThrow(RangeError)

    expect(ruleset()).toBe(before)

    firewall.publish([published])
    expect(() => firewall.publish([{ ...published, target: '10.42.0.3' }])).toThrow('EEXIST')
    expect(firewall.description.published).toEqual([published])
  })

  test('guests of a closed network reach one another by published ports alone', async () => {
    const firewall = world.protect({ networks: [{ ...NETWORK, peer: 'closed' }, OTHER] })
    using links = openLinks(world.host.netns.fd)
    for (const link of ['veth-g2-h', 'veth-g3-h'])
      links.apply('isolate', [setPort(linkByName(links, link)?.index ?? 0, { isolated: true })])
    firewall.publish([{ proto: 'tcp', address: '0.0.0.0', port: 8080, target: '10.42.0.3', targetPort: 80 }])

    expect(await world.guests[2].tcp('10.42.0.3', 80, 0.5)).not.toStartWith('hello')
    // By the host, which would route it.
    world.guests[2].netns.run('ip', 'route', 'add', '10.42.0.3/32', 'via', '10.42.0.1')
    expect(await world.guests[2].tcp('10.42.0.3', 80)).toBe(REFUSED)
    expect(await world.guests[2].tcp('192.0.2.1', 8080)).toStartWith('hello')
    await stands()

    world.guests[2].netns.run('ip', 'route', 'del', '10.42.0.3/32')
    world.guests[2].netns.run('ip', 'neigh', 'flush', 'dev', 'eth0')
    for (const link of ['veth-g2-h', 'veth-g3-h'])
      links.apply('isolate', [setPort(linkByName(links, link)?.index ?? 0, { isolated: false })])
  })

  test('a port that is taken out of its bridge leads nowhere', async () => {
    world.protect()
    const { host, guests } = world
    host.netns.run('ip', 'link', 'set', 'veth-g2-h', 'nomaster')
    host.netns.run('ip', 'addr', 'add', '10.42.0.1/24', 'dev', 'veth-g2-h')
    host.netns.run('ip', 'route', 'add', '10.42.0.2/32', 'dev', 'veth-g2-h')

    expect(await guests[2].tcp('10.42.0.1', 22, 0.5)).not.toStartWith('hello')
    expect(await guests[2].tcp('192.0.2.2', 80, 0.5)).not.toStartWith('hello')

    host.netns.run('ip', 'addr', 'flush', 'dev', 'veth-g2-h')
    host.netns.run('ip', 'link', 'set', 'veth-g2-h', 'master', 'aerie0')
  })

  test('guests of an isolated network get nowhere, whatever is said of them', async () => {
    world.protect({ networks: [{ ...NETWORK, kind: 'isolated' }, OTHER] })

    expect(await world.guests[2].tcp('192.0.2.2', 80)).toBe(REFUSED)
    expect(await world.guests[2].tcp('10.42.0.1', 22)).toBe(REFUSED)
    expect(await world.guests[2].tcp('10.42.0.3', 80)).toBe('hello 10.42.0.2')
  })

  test('the largest segment of a connection fits where it goes', async () => {
    world.protect()
    const { host, outside, guests } = world
    for (const [place, link] of [
      [host, 'up0'],
      [outside, 'eth0'],
    ] as const)
      place.netns.run('ip', 'link', 'set', link, 'mtu', '1400')
    await outside.ask('sniff')

    await guests[2].tcp('192.0.2.2', 80)

    // Options of the SYN: kind 2, length 4, 1360 = 1400 less the headers.
    while (!(await outside.ask('seen', '02040550'))) await Bun.sleep(1)
    expect(await outside.ask('seen', '020405b4')).toBe(false)

    for (const [place, link] of [
      [host, 'up0'],
      [outside, 'eth0'],
    ] as const)
      place.netns.run('ip', 'link', 'set', link, 'mtu', '1500')
  })

  test('bridge and uplink forward, no other link does, and all is as before when it is undone', async () => {
    world.protect()
    const { host, guests } = world
    const sysctl = (...words: string[]) => host.netns.run('sysctl', ...words)
    sysctl('-qw', 'net.ipv4.ip_forward=0', 'net.ipv6.conf.all.forwarding=0')
    const state = () => sysctl('-a', '-r', 'forwarding|accept_ra$')
    const before = state()
    const run = (code: string) =>
      host.netns.run(
        process.execPath,
        '-e',
        `import { forward, undoForwarding, uplinks } from ${JSON.stringify(FORWARDING)}
        import { openLinks } from ${JSON.stringify(join(import.meta.dir, '../../../src/linux/netlink/links.ts'))}
        ${code}`,
      )
    expect(await guests[2].tcp('192.0.2.2', 80, 0.3)).not.toStartWith('hello')

    const changed = run(`using links = openLinks()
      const where = { bridges: ['aerie0'], bridges6: ['aerie0'], uplinks: uplinks(links) }
      console.log(JSON.stringify(forward(where)))
      if (forward(where).length > 0) throw new Error('twice')`)

    expect(await guests[2].tcp('192.0.2.2', 80)).toBe('hello 192.0.2.1')
    expect(await guests[2].tcp('2001:db8::2', 80)).toBe('hello 2001:db8::1')
    expect(sysctl('-n', 'net.ipv4.ip_forward', 'net.ipv4.conf.aerie1.forwarding')).toBe('0\n0\n')
    expect(await guests[4].tcp('192.0.2.2', 80, 0.3)).not.toStartWith('hello')

    run(`undoForwarding(${changed})`)

    expect(state()).toBe(before)

    sysctl('-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1')
  })

  test('a port that comes after its guard, or comes again, is guarded', async () => {
    const { firewall, host, guests } = { ...world, firewall: world.protect({ nics: [] }) }
    const ip = (...words: string[]) => host.netns.run('ip', ...words)
    const make = () =>
      ip('link', 'add', 'veth-g2-h', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', guests[2].netns.path)
    const isGuarded = async () => {
      const before = firewall.counters('veth-g2-h')?.mac.packets ?? 0
      ip('link', 'set', 'veth-g2-h', 'master', 'aerie0', 'up')
      guests[2].netns.run('ip', 'link', 'set', 'eth0', 'up')
      await guests[2].send(`ffffffffffff020000000003${'0800'}${'00'.repeat(46)}`)
      while ((firewall.counters('veth-g2-h')?.mac.packets ?? 0) <= before) await Bun.sleep(1)
    }
    ip('link', 'del', 'veth-g2-h')

    if (GUARDS_NAMES) firewall.attach(nicOf(2))
    else expect(() => firewall.attach(nicOf(2))).toThrow('ENOENT')
    make()
    if (!GUARDS_NAMES) firewall.attach(nicOf(2))
    await isGuarded()

    ip('link', 'del', 'veth-g2-h')
    make()
    firewall.attach(nicOf(2))
    await isGuarded()

    ip('link', 'del', 'veth-g2-h')
    firewall.rebuild()
    make()
    firewall.attach(nicOf(2))
    await isGuarded()

    ip('link', 'del', 'veth-g2-h')
    firewall.detach('veth-g2-h')
    expect(nft('list', 'ruleset')).not.toContain('veth-g2-h')
  })
})
