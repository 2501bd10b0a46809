import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { DROP_KINDS, type DropKind } from '../../../src/network/firewall/guard.ts'
import { isRoot } from '../../linux/support.ts'
import {
  arp,
  arpPayload,
  ethernet,
  extended,
  fragment,
  ICMP6,
  icmp6,
  ipv4,
  ipv6,
  linkLocal,
  neighbour,
  ROUTER,
  udpPayload,
} from './frames.ts'
import { nicOf, World } from './world.ts'

const ME = '02:00:00:00:00:02'
const PEER = '02:00:00:00:00:03'
const ADDRESS = '10.42.0.2'
const ADDRESS6 = 'fd42::2'
const LOCAL = linkLocal(ME)
const ALL_NODES = 'ff02::1'
const UDP = 17
const HOP_BY_HOP = 0
const FRAGMENT = 44
const DESTINATION = 60

const advertise = (source: string) => icmp6(source, ALL_NODES, 134, ROUTER)
const message = (source: string, type: number, body: string, destination = ALL_NODES) =>
  ipv6(ME, source, destination, ICMP6, icmp6(source, destination, type, body))

/** Frames that nobody but their port hears, and what that counts them as. */
const FORGED: readonly (readonly [what: string, kind: DropKind, frame: string])[] = [
  ['another MAC address', 'mac', ipv4(PEER, ADDRESS, '10.42.0.3', UDP, udpPayload(1, 2))],
  ['another MAC address in ARP', 'mac', arp(PEER, 1, PEER, ADDRESS, '10.42.0.3')],
  ['another IPv4 address', 'ipv4', ipv4(ME, '10.42.0.3', '10.42.0.3', UDP, udpPayload(1, 2))],
  ['the IPv4 address of the gateway', 'ipv4', ipv4(ME, '10.42.0.1', '10.42.0.3', UDP, udpPayload(1, 2))],
  ['no IPv4 address, where it asks for none', 'ipv4', ipv4(ME, '0.0.0.0', '255.255.255.255', UDP, udpPayload(68, 67))],
  ['an answer of ARP for the gateway', 'arp', arp(ME, 2, ME, '10.42.0.1', '10.42.0.3')],
  ['a question of ARP from the gateway', 'arp', arp(ME, 1, ME, '10.42.0.1', '10.42.0.3')],
  ['an answer of ARP for a peer', 'arp', arp(ME, 2, ME, '10.42.0.3', '10.42.0.1')],
  ['another MAC address within ARP', 'arp', arp(ME, 2, PEER, ADDRESS, '10.42.0.3')],
  ['a probe for the address of a peer', 'arp', arp(ME, 1, ME, '0.0.0.0', '10.42.0.3')],
  [
    'ARP of another kind of hardware',
    'arp',
    ethernet(ME, 0x0806, `0006${arpPayload(1, ME, ADDRESS, '10.42.0.3').slice(4)}`),
  ],
  ['an answer of a DHCP server', 'ra', ipv4(ME, ADDRESS, '255.255.255.255', UDP, udpPayload(67, 68))],
  ['an answer of a DHCPv6 server', 'ra', ipv6(ME, LOCAL, ALL_NODES, UDP, udpPayload(547, 546))],
  ['another IPv6 address', 'ipv6', ipv6(ME, 'fd42::3', ALL_NODES, UDP, udpPayload(1, 2))],
  ['the link-local address of a peer', 'ipv6', ipv6(ME, linkLocal(PEER), ALL_NODES, UDP, udpPayload(1, 2))],
  ['no IPv6 address', 'ipv6', ipv6(ME, '::', ALL_NODES, UDP, udpPayload(1, 2))],
  ['a router advertisement', 'ra', ipv6(ME, LOCAL, ALL_NODES, ICMP6, advertise(LOCAL))],
  [
    'a router advertisement behind a header for every hop',
    'ra',
    ipv6(ME, LOCAL, ALL_NODES, HOP_BY_HOP, extended(ICMP6, advertise(LOCAL))),
  ],
  [
    'a router advertisement behind a header for its destination',
    'ra',
    ipv6(ME, LOCAL, ALL_NODES, DESTINATION, extended(ICMP6, advertise(LOCAL))),
  ],
  [
    'a router advertisement in the first of two parts',
    'ra',
    ipv6(ME, LOCAL, ALL_NODES, FRAGMENT, fragment(ICMP6, 0, true, advertise(LOCAL))),
  ],
  [
    'a first part that ends before what it is',
    'ipv6',
    ipv6(ME, LOCAL, ALL_NODES, FRAGMENT, fragment(DESTINATION, 0, true, extended(ICMP6, ''))),
  ],
  ['a router advertisement of another', 'ra', ipv6(ME, 'fe80::1', ALL_NODES, ICMP6, advertise('fe80::1'))],
  ['a redirect', 'ra', message(LOCAL, 137, neighbour('fd42::9') + neighbour('fd42::9').slice(8))],
  ['a query for listeners', 'ra', message(LOCAL, 130, neighbour('::'))],
  ['an advertisement of a neighbour for the gateway', 'ipv6', message(LOCAL, 136, neighbour('fd42::1', '20000000'))],
  ['an advertisement of a neighbour for a peer', 'ipv6', message(ADDRESS6, 136, neighbour('fd42::3', '20000000'))],
  ['a probe for the IPv6 address of a peer', 'ipv6', message('::', 135, neighbour('fd42::3'))],
  ['a VLAN tag', 'other', ethernet(ME, 0x8100, `00010806${arpPayload(1, ME, ADDRESS, '10.42.0.3')}`)],
  ['a VLAN tag of a provider', 'other', ethernet(ME, 0x88a8, `00010806${arpPayload(1, ME, ADDRESS, '10.42.0.3')}`)],
  [
    'two VLAN tags',
    'other',
    ethernet(ME, 0x88a8, `000181000001${'0800'}${ipv4(ME, ADDRESS, '10.42.0.3', UDP, udpPayload(1, 2)).slice(28)}`),
  ],
  [
    'a VLAN tag before IPv6',
    'other',
    ethernet(ME, 0x8100, `000186dd${ipv6(ME, LOCAL, ALL_NODES, ICMP6, advertise(LOCAL)).slice(28)}`),
  ],
  ['LLDP', 'other', ethernet(ME, 0x88cc, '00'.repeat(46), '01:80:c2:00:00:0e')],
  ['PPPoE', 'other', ethernet(ME, 0x8863, '00'.repeat(46))],
  ['a frame of spanning tree', 'other', ethernet(ME, 0x0026, `424203${'00'.repeat(35)}`, '01:80:c2:00:00:00')],
]

/** Frames that are heard. */
const TRUE: readonly (readonly [what: string, frame: string])[] = [
  ['its own IPv4 address', ipv4(ME, ADDRESS, '10.42.0.3', UDP, udpPayload(1, 2))],
  ['its own address in ARP', arp(ME, 1, ME, ADDRESS, '10.42.0.3')],
  ['a probe for its own address', arp(ME, 1, ME, '0.0.0.0', ADDRESS)],
  ['its own IPv6 address', ipv6(ME, ADDRESS6, ALL_NODES, UDP, udpPayload(1, 2))],
  ['its own link-local address', ipv6(ME, LOCAL, ALL_NODES, UDP, udpPayload(1, 2))],
  ['its own IPv6 address behind a header', ipv6(ME, ADDRESS6, ALL_NODES, DESTINATION, extended(UDP, udpPayload(1, 2)))],
  ['a solicitation for a peer', message(ADDRESS6, 135, neighbour('fd42::3'))],
  ['an advertisement of itself', message(ADDRESS6, 136, neighbour(ADDRESS6, '20000000'))],
  ['a probe for its own IPv6 address', message('::', 135, neighbour(ADDRESS6))],
  ['a probe for its own link-local address', message('::', 135, neighbour(LOCAL))],
  [
    'whom it listens to',
    ipv6(ME, '::', 'ff02::16', HOP_BY_HOP, extended(ICMP6, icmp6('::', 'ff02::16', 143, '00000000'))),
  ],
  ['a later part of a message', ipv6(ME, ADDRESS6, ALL_NODES, FRAGMENT, fragment(ICMP6, 8, false, 'aaaaaaaaaaaaaaaa'))],
]

describe.skipIf(!isRoot)('what a port may send', () => {
  let world: World
  const drops = () => {
    const counted = world.firewall.counters('veth-g2-h')
    return Object.fromEntries(DROP_KINDS.map((kind) => [kind, counted?.[kind].packets]))
  }

  beforeAll(async () => {
    world = new World()
    await world.guests[3].ask('sniff')
  })
  afterAll(async () => world[Symbol.asyncDispose]())
  beforeEach(() => {
    world.protect()
  })

  /** A frame with words of its own at its end, so that whoever hears it knows it again. */
  let marks = 0
  const marked = (frame: string): readonly [frame: string, mark: string] => {
    const mark = `feedface${(++marks).toString(16).padStart(8, '0')}`
    return [`${frame}${mark}`, mark]
  }

  for (const [what, kind, frame] of FORGED)
    test(`${what} is dropped, and counted as ${kind}`, async () => {
      const before = drops()
      const [forged, mark] = marked(frame)
      const [honest, heard] = marked(TRUE[0]?.[1] ?? '')

      await world.guests[2].send(forged, honest)
      while (!(await world.guests[3].ask('seen', heard))) await Bun.sleep(1)

      expect(drops()).toEqual({ ...before, [kind]: (before[kind] ?? 0) + 1 })
      expect(await world.guests[3].ask('seen', mark)).toBe(false)
    })

  for (const [what, frame] of TRUE)
    test(`${what} is heard`, async () => {
      const before = drops()
      const [honest, heard] = marked(frame)

      await world.guests[2].send(honest)
      while (!(await world.guests[3].ask('seen', heard))) await Bun.sleep(1)

      expect(drops()).toEqual(before)
    })

  test('one that asks for its address may ask, before it has one', async () => {
    world.firewall.attach(nicOf(2, { dhcp: true }))
    const before = drops()
    const [frame, heard] = marked(ipv4(ME, '0.0.0.0', '255.255.255.255', UDP, udpPayload(68, 67)))

    await world.guests[2].send(frame)
    while (!(await world.guests[3].ask('seen', heard))) await Bun.sleep(1)

    expect(drops()).toEqual(before)
  })
})
