import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { closeFd } from '../../../src/linux/fd.ts'
import {
  addresses,
  deleteGroup,
  deleteLink,
  linkByName,
  linkCounters,
  links,
  MACVTAP_MODE,
  newAddress,
  newBridge,
  newMacvtap,
  newRoute,
  newVeth,
  openLinks,
  routes,
  setLink,
  setPort,
} from '../../../src/linux/netlink/links.ts'
import { type Netlink, NetlinkError } from '../../../src/linux/netlink/netlink.ts'
import { openTap } from '../../../src/linux/tap.ts'
import { Netns } from '../netns.ts'
import { isRoot } from '../support.ts'

describe.skipIf(!isRoot)('links, addresses and routes', () => {
  let netns: Netns
  let netlink: Netlink
  const open: number[] = []
  const index = (name: string): number => linkByName(netlink, name)?.index ?? 0

  beforeAll(() => {
    netns = new Netns()
    netlink = openLinks(netns.fd)
  })
  afterAll(() => {
    for (const fd of open) closeFd(fd)
    netlink[Symbol.dispose]()
    netns[Symbol.dispose]()
  })

  test('a bridge has its address, its MTU and no spanning tree from its first moment', () => {
    netlink.apply('make a bridge', [newBridge({ name: 'br0', mac: '02:00:00:00:00:01', mtu: 1450 })])
    netlink.apply('give it addresses', [
      newAddress(index('br0'), Uint8Array.of(10, 42, 0, 1), 24),
      newAddress(index('br0'), Buffer.from('fd000000000000000000000000000001', 'hex'), 64),
    ])

    const [bridge] = netns.ip('link', 'show', 'br0')
    expect(bridge).toMatchObject({
      address: '02:00:00:00:00:01',
      mtu: 1450,
      linkinfo: { info_kind: 'bridge', info_data: { stp_state: 0, forward_delay: 0 } },
    })
    const [{ addr_info }] = netns.ip('addr', 'show', 'br0') as unknown as [{ addr_info: unknown[] }]
    expect(addr_info).toContainEqual(expect.objectContaining({ local: '10.42.0.1', prefixlen: 24 }))
    expect(addr_info).toContainEqual(expect.objectContaining({ local: 'fd00::1', prefixlen: 64 }))
    expect(addresses(netlink).find(({ prefix }) => prefix === 24)).toMatchObject({ link: index('br0') })
    expect(links(netlink).map(({ name }) => name)).toContain('br0')
  })

  test('a tap becomes a port that is up, and isolated where it is asked for', () => {
    open.push(...openTap('tap0', 1, netns.fd))
    netlink.apply('attach a tap', [
      setLink(index('tap0'), { master: index('br0'), up: true, group: 77, bare: true }),
      setPort(index('tap0'), { isolated: true }),
    ])

    const [tap] = netns.ip('link', 'show', 'tap0')
    expect(tap).toMatchObject({
      master: 'br0',
      inet6_addr_gen_mode: 'none',
      flags: expect.arrayContaining(['UP']) as unknown,
      linkinfo: { info_slave_kind: 'bridge', info_slave_data: { isolated: true } },
    })
    expect(linkByName(netlink, 'tap0')).toMatchObject({ master: index('br0'), up: true, kind: 'tun', group: 77 })
  })

  test('a tap of several queues is one link with as many descriptors', () => {
    const queues = openTap('tapq', 4, netns.fd)
    open.push(...queues)
    expect(queues).toHaveLength(4)
    expect(netns.ip('link', 'show', 'tapq')[0]).toMatchObject({ linkinfo: { info_data: { multi_queue: true } } })
  })

  test('a pair of ends is made in two namespaces with one message', () => {
    using other = new Netns()
    netlink.apply('make a pair', [
      newVeth(
        { name: 'veth-h', mac: '02:00:00:00:00:05' },
        { name: 'veth-c', mac: '02:00:00:00:00:06', netns: other.fd },
      ),
    ])
    expect(linkByName(netlink, 'veth-h')).toMatchObject({ kind: 'veth', mac: '02:00:00:00:00:05' })
    expect(other.ip('link', 'show', 'veth-c')[0]).toMatchObject({ address: '02:00:00:00:00:06' })
    netlink.apply('delete', [deleteLink(index('veth-h'))])
    expect(linkByName(netlink, 'veth-h')).toBeUndefined()
  })

  test('a macvtap stands on its parent', () => {
    netlink.apply('make a pair', [newVeth({ name: 'up0' }, { name: 'up1' })])
    for (const mode of Object.keys(MACVTAP_MODE) as (keyof typeof MACVTAP_MODE)[]) {
      netlink.apply('make a macvtap', [newMacvtap({ name: 'mv0', mac: '02:00:00:00:00:09' }, index('up0'), mode)])
      expect(netns.ip('link', 'show', 'mv0')[0]).toMatchObject({
        link: 'up0',
        linkinfo: { info_kind: 'macvtap', info_data: { mode } },
      })
      netlink.apply('delete', [deleteLink(index('mv0'))])
    }
  })

  test('the counters of a link are those that `ip` reads', () => {
    netlink.apply('make a pair', [newVeth({ name: 'c0' }, { name: 'c1' })])
    netlink.apply('raise it', [setLink(index('c0'), { up: true }), setLink(index('c1'), { up: true })])
    netlink.apply('address it', [newAddress(index('c0'), Uint8Array.of(10, 98, 0, 1), 24)])
    netns.run('ip', 'neigh', 'add', '10.98.0.2', 'lladdr', '02:00:00:00:00:77', 'dev', 'c0')
    netns.run('bash', '-c', 'for n in 1 2 3; do printf %01000d 0 >/dev/udp/10.98.0.2/9; done')

    const [said] = netns.ip('-s', 'link', 'show', 'c1') as unknown as [
      { stats64: Record<'rx' | 'tx', { bytes: number; packets: number }> },
    ]
    const { rx, tx } = said.stats64
    expect(rx.bytes).toBeGreaterThanOrEqual(3 * 1042)
    expect(linkCounters(netlink, 'c1')).toEqual({
      rxBytes: rx.bytes,
      rxPackets: rx.packets,
      txBytes: tx.bytes,
      txPackets: tx.packets,
    })
    expect(linkCounters(netlink, 'c9')).toBeUndefined()
  })

  test('routes go over a gateway or a link', () => {
    netlink.apply('route', [
      newRoute(Uint8Array.of(10, 99, 0, 0), 16, { gateway: Uint8Array.of(10, 42, 0, 7) }),
      newRoute(Uint8Array.of(0, 0, 0, 0), 0, { gateway: Uint8Array.of(10, 42, 0, 8) }),
    ])
    expect(netns.ip('route')).toContainEqual(expect.objectContaining({ dst: '10.99.0.0/16', gateway: '10.42.0.7' }))
    expect(netns.ip('route')).toContainEqual(expect.objectContaining({ dst: 'default', gateway: '10.42.0.8' }))
    expect(routes(netlink)).toContainEqual(expect.objectContaining({ family: 4, prefix: 16 }))
  })

  test('a whole group goes at once, aside', async () => {
    await netlink.applyAside('delete a group', [deleteGroup(77)])
    expect(linkByName(netlink, 'tap0')).toBeUndefined()
    expect(linkByName(netlink, 'br0')).toBeDefined()
  })

  test('what is refused is told with its place and the words of the kernel, and what stands behind it is made', () => {
    const bad = () => {
      netlink.apply('set up', [
        newBridge({ name: 'br1', mac: '02:00:00:00:00:02' }),
        newBridge({ name: 'br0', mac: '02:00:00:00:00:02' }),
        newBridge({ name: 'br2', mac: '02:00:00:00:00:02' }),
      ])
    }
    expect(bad).toThrow(NetlinkError)
    expect(linkByName(netlink, 'br2')).toBeDefined()
    try {
      netlink.apply('set up', [newBridge({ name: 'br0', mac: '02:00:00:00:00:02' })])
    } catch (error) {
      expect(error).toMatchObject({ code: 'EEXIST', index: 0, syscall: 'set up' })
    }
  })
})
