import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import type { Egress } from '../../../src/network/firewall/description.ts'
import { isRoot } from '../../linux/support.ts'
import { NETWORK, nicOf, OTHER, World } from './world.ts'

const REFUSED = 'ConnectionRefusedError 111'
const NONE: Egress = { policy: 'none', allow: [] }
const list = (...allow: Egress['allow'][number][]): Egress => ({ policy: 'allow-list', allow })
const LINK = 'veth-g2-h'
const [SITE, MIRROR, SITE6] = ['93.184.216.34', '93.184.216.35', '2606:2800::34']

describe.skipIf(!isRoot)('what a guest may reach', () => {
  let world: World

  beforeAll(async () => {
    world = new World()
    const { host, outside, guests } = world
    for (const any of ['0.0.0.0', '::']) {
      for (const place of [outside, guests[2], guests[3]])
        for (const port of [80, 443, 8443]) await place.listen('tcp', any, port)
      await outside.listen('udp', any, 443)
      await outside.listen('udp', any, 53)
      await host.listen('udp', any, 53)
    }
    world.protect({}, { hold: { least: 1, grace: 0 } })
  })
  afterAll(async () => world[Symbol.asyncDispose]())
  beforeEach(() => {
    world.protect()
  })
  const refuses = async (...ways: (readonly [address: string, port: number])[]) => {
    for (const [address, port] of ways)
      expect([address, port, await world.guests[2].tcp(address, port)]).toEqual([address, port, REFUSED])
  }
  const reaches = async (...ways: (readonly [address: string, port: number])[]) => {
    for (const [address, port] of ways)
      expect([address, port, await world.guests[2].tcp(address, port)]).toEqual([
        address,
        port,
        `hello ${address.includes(':') ? '2001:db8::1' : '192.0.2.1'}`,
      ])
  }

  test('one that may reach nothing has its resolver, its peers and whoever comes to it', async () => {
    const { firewall, guests, outside } = world
    firewall.setEgress(LINK, NONE)
    firewall.publish([
      { proto: 'tcp', address: '0.0.0.0', port: 8080, target: '10.42.0.2', targetPort: 80 },
      { proto: 'tcp', address: '0.0.0.0', port: 8081, target: '10.43.0.4', targetPort: 80 },
    ])

    await refuses([SITE, 80], [SITE6, 80], ['192.0.2.2', 443])
    expect(await guests[2].udp(SITE, 443)).not.toStartWith('hello')
    expect(await guests[2].ping(SITE, 0.2)).not.toBe('answered')
    expect(await guests[2].udp('10.42.0.1', 53)).toBe('hello 10.42.0.2')
    expect(await guests[2].tcp('10.42.0.3', 80)).toBe('hello 10.42.0.2')
    expect(await guests[2].tcp('192.0.2.1', 8081)).toBe(REFUSED)
    expect(await outside.tcp('192.0.2.1', 8080)).toBe('hello 192.0.2.2')
    expect(await guests[3].tcp(SITE, 80)).toBe('hello 192.0.2.1')
  })

  test('a list of ranges and ports lets those through, and nothing else', async () => {
    world.firewall.setEgress(
      LINK,
      list({ cidr: '93.184.216.0/24', proto: 'tcp', ports: ['443', '8000-8500'] }, { cidr: `${SITE6}/128` }),
    )

    await reaches([SITE, 443], [MIRROR, 8443], [SITE6, 80])
    await refuses([SITE, 80], ['192.0.2.2', 443], ['2001:db8::2', 443])
    expect(await world.guests[2].udp(SITE, 443)).not.toStartWith('hello')
    expect(await world.guests[2].udp('192.0.2.2', 53)).not.toStartWith('hello')
    expect(await world.guests[2].ping(SITE, 0.2)).not.toBe('answered')
    expect(await world.guests[2].ping(SITE6)).toBe('answered')
  })

  test('lines that overlap are all of them true', async () => {
    world.firewall.setEgress(
      LINK,
      list(
        { cidr: '93.0.0.0/8', ports: ['443'] },
        { cidr: SITE },
        { proto: 'icmp' },
        { ports: ['400-500'], proto: 'udp' },
      ),
    )

    await reaches([SITE, 80], [MIRROR, 443])
    await refuses([MIRROR, 80])
    expect(await world.guests[2].ping('192.0.2.2')).toBe('answered')
    expect(await world.guests[2].udp('192.0.2.2', 443)).toBe('hello 192.0.2.1')
    expect(await world.guests[2].udp('192.0.2.2', 53)).not.toStartWith('hello')
  })

  test('what a network may reach is what its guests may, but for those with a list of their own', async () => {
    world.protect({
      networks: [{ ...NETWORK, egress: NONE }, OTHER],
      nics: [nicOf(2, { egress: list({ cidr: SITE }) }), nicOf(3)],
    })

    await reaches([SITE, 80])
    await refuses([MIRROR, 80])
    expect(await world.guests[3].tcp(SITE, 80)).toBe(REFUSED)

    world.firewall.setNetwork({ ...NETWORK, egress: list({ cidr: MIRROR }) })

    await refuses([MIRROR, 80])
    expect(await world.guests[3].tcp(MIRROR, 80)).toBe('hello 192.0.2.1')
    expect(await world.guests[3].tcp(SITE, 80)).toBe(REFUSED)

    world.firewall.setEgress(LINK, null)

    await reaches([MIRROR, 80])
  })

  test('a name lets its addresses through for its ports, for the guest that asked', async () => {
    const { firewall, guests } = world
    const named = list({ name: 'site.example', ports: ['443'] }, { name: '*.cdn.example' })
    firewall.setEgress(LINK, named)
    firewall.setEgress('veth-g3-h', named)
    await refuses([SITE, 443])

    expect(firewall.learn(LINK, 'Site.Example.', [SITE, SITE6], 300)).toEqual([SITE, SITE6])
    expect(firewall.learn(LINK, 'a.b.cdn.example', [MIRROR], 300)).toEqual([MIRROR])

    await reaches([SITE, 443], [SITE6, 443], [MIRROR, 80])
    await refuses([SITE, 80], ['192.0.2.2', 443])
    expect(await guests[3].tcp(SITE, 443)).toBe(REFUSED)
    for (const name of ['other.example', 'example', 'cdn.example', 'xcdn.example', 'site.example.evil'])
      expect(firewall.learn(LINK, name, ['192.0.2.2'], 300)).toEqual([])
  })

  test('an answer that is nobody’s address on the internet is refused, where no range says that it may be', () => {
    const { firewall } = world
    firewall.setEgress(LINK, list({ name: 'site.example' }, { name: 'git.corp.example', cidr: '10.0.0.0/8' }))
    const inner = [
      '10.1.2.3',
      '127.0.0.1',
      '192.168.1.1',
      '169.254.169.254',
      '::1',
      'fd00::1',
      '::ffff:10.1.2.3',
      'fe80::1',
    ]

    expect(firewall.learn(LINK, 'site.example', [...inner, SITE], 300)).toEqual([SITE])
    expect(firewall.learn(LINK, 'git.corp.example', [...inner, SITE], 300)).toEqual(['10.1.2.3'])
  })

  test('when a name’s time is over nobody new comes through, and who is through stays', async () => {
    const { firewall, guests } = world
    firewall.setEgress(LINK, list({ name: 'site.example', ports: ['443'] }))
    firewall.learn(LINK, 'site.example', [SITE], 1)
    expect(await guests[2].ask('hold', 'open', SITE, 443, 1)).toBe('hello 192.0.2.1')

    while ((await guests[2].tcp(SITE, 443)) !== REFUSED) await Bun.sleep(20)

    expect(await guests[2].ask('say', 'open', 'still here')).toBe('still here')
  })

  test('an answer that comes again is let through for its time from then on', async () => {
    const { firewall } = world
    firewall.setEgress(LINK, list({ name: 'site.example', ports: ['443'] }))
    firewall.learn(LINK, 'site.example', [SITE], 1)
    firewall.learn(LINK, 'site.example', [SITE], 300)

    const said = JSON.parse(world.host.netns.run('nft', '-j', 'list', 'set', 'inet', 'aerie', 'learned4')) as {
      nftables: { set?: { elem: { elem: { expires: number; timeout: number } }[] } }[]
    }
    const [element] = said.nftables.flatMap(({ set }) => set?.elem ?? [])
    expect(element?.elem.timeout).toBe(300)
    expect(element?.elem.expires).toBeGreaterThan(200)
  })

  test('a change ends the flows that it forbids, and no others', async () => {
    const { firewall, guests } = world
    await guests[2].ask('hold', 'allowed', SITE, 443, 1)
    await guests[2].ask('hold', 'named', MIRROR, 443, 1)
    await guests[2].ask('hold', 'forbidden', SITE, 80, 1)
    await guests[3].ask('hold', 'peer', SITE, 80, 1)
    firewall.setEgress(LINK, list({ cidr: SITE, ports: ['443'] }, { name: 'mirror.example' }))
    firewall.learn(LINK, 'mirror.example', [MIRROR], 300)

    await firewall.settled()

    expect(await guests[2].ask('say', 'allowed', 'one')).toBe('one')
    expect(await guests[2].ask('say', 'named', 'two')).toBe('two')
    expect(await guests[2].ask('say', 'forbidden', 'three')).not.toBe('three')
    expect(await guests[3].ask('say', 'peer', 'four')).toBe('four')

    firewall.setEgress(LINK, list({ cidr: SITE }, { name: 'mirror.example', ports: ['443'] }))
    await firewall.settled()

    expect(await guests[2].ask('say', 'named', 'five')).toBe('five')
    await reaches([MIRROR, 443])

    firewall.setEgress(LINK, NONE)
    await firewall.settled()

    expect(await guests[2].ask('say', 'allowed', 'six')).not.toBe('six')
    expect(await guests[2].ask('say', 'named', 'seven')).not.toBe('seven')
  })

  test('no list opens what clouds tell their hosts', async () => {
    world.firewall.setEgress(LINK, list({ cidr: '0.0.0.0/0' }, { name: 'metadata.example' }))

    await refuses(['169.254.169.254', 80])
    await reaches([SITE, 80])
    expect(world.firewall.learn(LINK, 'metadata.example', ['169.254.169.254'], 300)).toEqual([])
  })

  test('a guest that comes and goes leaves nothing', () => {
    const { firewall, host } = world
    const elements = () => host.netns.run('nft', 'list', 'ruleset').replaceAll(/packets \d+ bytes \d+/g, '')
    const before = elements()
    host.netns.run('ip', 'link', 'add', 'veth-g9-h', 'type', 'veth')

    for (const egress of [null, NONE, list({ cidr: SITE }, { name: 'site.example' })]) {
      firewall.attach(nicOf(9, { egress, dhcp: true }))
      firewall.learn('veth-g9-h', 'site.example', [SITE], 300)
      firewall.attach(nicOf(9, { egress: list({ cidr: MIRROR }), mac: '02:00:00:00:00:aa' }))
      firewall.detach('veth-g9-h')
    }

    host.netns.run('ip', 'link', 'del', 'veth-g9-h')
    expect(elements()).toBe(before)
  })
})
