import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { isRoot } from '../../linux/support.ts'
import { World } from './world.ts'

const PORTS = [80, 443, 8443] as const

describe.skipIf(!isRoot)('the firewall in the way of packets', () => {
  let world: World

  beforeAll(async () => {
    world = new World()
    const { host, outside, guests } = world
    for (const place of [outside, guests[2], guests[3], guests[4]]) {
      for (const port of PORTS) for (const any of ['0.0.0.0', '::']) await place.listen('tcp', any, port)
      for (const any of ['0.0.0.0', '::']) await place.listen('udp', any, 80)
    }
    for (const any of ['0.0.0.0', '::']) {
      await host.listen('tcp', any, 22)
      await host.listen('tcp', any, 53)
      await host.listen('udp', any, 53)
    }
  })
  afterAll(async () => world[Symbol.asyncDispose]())
  beforeEach(() => {
    world.protect()
  })

  test('guests go out behind the address of the host, with both kinds of addresses', async () => {
    expect(await world.guests[2].tcp('192.0.2.2', 80)).toBe('hello 192.0.2.1')
    expect(await world.guests[2].tcp('2001:db8::2', 80)).toBe('hello 2001:db8::1')
    expect(await world.guests[2].udp('192.0.2.2', 80)).toBe('hello 192.0.2.1')
    expect(await world.guests[2].ping('192.0.2.2')).toBe('answered')
  })

  test('a guest reaches of the host its resolver and ping, and is told that it reaches nothing else', async () => {
    const guest = world.guests[2]

    for (const gateway of ['10.42.0.1', 'fd42::1']) {
      expect(await guest.tcp(gateway, 53)).toBe(`hello ${gateway.replace(/1$/, '2')}`)
      expect(await guest.udp(gateway, 53)).toBe(`hello ${gateway.replace(/1$/, '2')}`)
      expect(await guest.ping(gateway)).toBe('answered')
    }
    for (const address of ['10.42.0.1', '192.0.2.1', '10.43.0.1', 'fd42::1', '2001:db8::1'])
      expect(await guest.tcp(address, 22)).toBe('ConnectionRefusedError 111')
    expect(await guest.tcp('192.0.2.1', 53)).toBe('ConnectionRefusedError 111')
    expect(await guest.udp('192.0.2.1', 53)).not.toStartWith('hello')
  })

  test('guests of one network talk, those of two do not', async () => {
    expect(await world.guests[2].tcp('10.42.0.3', 80)).toBe('hello 10.42.0.2')
    expect(await world.guests[2].tcp('10.43.0.4', 80)).toBe('ConnectionRefusedError 111')
    expect(await world.guests[2].tcp('fd43::4', 80)).toBe('ConnectionRefusedError 111')
  })

  test('a port that is published leads to its guest, from outside, from the host and from guests', async () => {
    const { firewall, host, outside, guests } = world
    firewall.publish([
      { proto: 'tcp', address: '0.0.0.0', port: 8080, target: '10.42.0.2', targetPort: 80 },
      { proto: 'tcp', address: '::', port: 8080, target: 'fd42::2', targetPort: 80 },
      { proto: 'udp', address: '192.0.2.1', port: 8080, target: '10.42.0.2', targetPort: 80 },
    ])

    expect(await outside.tcp('192.0.2.1', 8080)).toBe('hello 192.0.2.2')
    expect(await outside.tcp('2001:db8::1', 8080)).toBe('hello 2001:db8::2')
    expect(await outside.udp('192.0.2.1', 8080)).toBe('hello 192.0.2.2')
    expect(await host.tcp('192.0.2.1', 8080)).toStartWith('hello ')
    expect(await host.tcp('2001:db8::1', 8080)).toStartWith('hello ')
    expect(await host.tcp('10.42.0.1', 8080)).toStartWith('hello ')
    expect(await guests[3].tcp('192.0.2.1', 8080)).toStartWith('hello ')
    expect(await guests[2].tcp('192.0.2.1', 8080)).toStartWith('hello ')
    expect(await guests[2].tcp('2001:db8::1', 8080)).toStartWith('hello ')
    expect(await guests[4].tcp('192.0.2.1', 8080)).toBe('hello 10.43.0.4')

    firewall.unpublish(firewall.description.published)

    expect(await outside.tcp('192.0.2.1', 8080)).toBe('ConnectionRefusedError 111')
    expect(await outside.tcp('2001:db8::1', 8080)).toBe('ConnectionRefusedError 111')
  })

  test('from outside nobody comes in but by a published port, whatever route he has', async () => {
    const { outside } = world
    outside.netns.run('ip', 'route', 'replace', '10.42.0.0/24', 'via', '192.0.2.1')
    outside.netns.run('ip', 'route', 'replace', 'fd42::/64', 'via', '2001:db8::1')

    expect(await outside.tcp('10.42.0.2', 80, 0.3)).toBe('TimeoutError')
    expect(await outside.tcp('fd42::2', 80, 0.3)).toBe('TimeoutError')
    expect(await outside.ping('10.42.0.2', 0.3)).toBe('TimeoutError')
  })
})
