import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Netns } from '../linux/netns.ts'
import { isRoot } from '../linux/support.ts'
import { clean, cli, createVm, haveBinary, startDaemon, until, type Daemon } from './daemon.ts'

const at = (name: string) => ({ params: { name } })
/** A server of the world outside, by a name that its resolver knows. */
const SERVER = '93.184.216.34'
const OTHER = '93.184.216.35'
const RESOLVER = '93.184.216.53'

/** Answers every question for an A record with the server's address, and all else with nothing. */
const DNS = `import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('${RESOLVER}', 53))
while True:
    q, who = s.recvfrom(2048)
    end = q.index(b'\\0', 12) + 5
    a = q[end-4:end-2] == b'\\0\\1'
    body = b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4' + socket.inet_aton('${SERVER}') if a else b''
    s.sendto(q[:2] + b'\\x81\\x80\\0\\1' + (b'\\0\\1' if a else b'\\0\\0') + b'\\0\\0\\0\\0' + q[12:end] + body, who)
`

/** Takes all that is sent to port 9000, and sends to port 9001 as fast as it can. */
const STREAMS = `import socket, threading
def serve(port, work):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('${SERVER}', port)); s.listen()
    while True:
        c, _ = s.accept()
        try:
            while work(c): pass
        except OSError: pass
        c.close()
threading.Thread(target=serve, args=(9000, lambda c: c.recv(65536))).start()
serve(9001, lambda c: c.send(bytes(65536)))
`

/** The compiled file with real guests, in network namespaces of the test's own: the host, and the world outside of it. */
describe.skipIf(!haveBinary || !isRoot)('networks of real guests', () => {
  const folder = mkdtempSync('/tmp/aerie-net-')
  let host: Netns
  let world: Netns
  let daemon: Daemon
  const servers: Bun.Subprocess[] = []
  const say = async (name: string, script: string) =>
    (await cli(daemon, ['exec', name, '--', 'sh', '-c', script])).stdout
  const code = async (name: string, script: string) =>
    (await cli(daemon, ['exec', name, '--', 'sh', '-c', script])).code
  const fetches = async (name: string, url: string) =>
    (await code(name, `timeout 6 wget -q -O /dev/null ${url} 2>/dev/null`)) === 0
  const dropped = async (link: string) => (await daemon.client.call('network.get', at('default'))).dropped[link] ?? {}
  const linkOf = async (name: string) =>
    (await daemon.client.call('network.get', at('default'))).leases.find((lease) => lease.name === name)?.link ?? ''

  beforeAll(async () => {
    host = new Netns()
    world = new Netns()
    host.run('ip', 'link', 'set', 'lo', 'up')
    // Packets between ports of a bridge pass it by; with 1, which Docker sets, a guest does not reach itself by a published port.
    host.run('sysctl', '-q', '-w', 'net.bridge.bridge-nf-call-iptables=0', 'net.bridge.bridge-nf-call-ip6tables=0')
    host.run('ip', 'link', 'add', 'up0', 'type', 'veth', 'peer', 'name', 'up1', 'netns', world.path)
    host.run('ip', 'addr', 'add', '192.0.2.2/24', 'dev', 'up0')
    host.run('ip', 'link', 'set', 'up0', 'up')
    host.run('ip', 'route', 'add', 'default', 'via', '192.0.2.1')
    world.run('ip', 'addr', 'add', '192.0.2.1/24', 'dev', 'up1')
    world.run('ip', 'link', 'set', 'up1', 'up')
    for (const address of [SERVER, OTHER, RESOLVER]) world.run('ip', 'addr', 'add', `${address}/32`, 'dev', 'up1')
    writeFileSync(join(folder, 'resolv.conf'), `nameserver ${RESOLVER}\n`)
    writeFileSync(join(folder, 'dns.py'), DNS)
    writeFileSync(join(folder, 'streams.py'), STREAMS)
    for (const argv of [
      ['python3', join(folder, 'dns.py')],
      ['python3', join(folder, 'streams.py')],
      ['busybox', 'httpd', '-f', '-p', `${SERVER}:80`, '-h', folder],
      ['busybox', 'httpd', '-f', '-p', `${OTHER}:80`, '-h', folder],
    ])
      servers.push(Bun.spawn(['nsenter', `--net=${world.path}`, ...argv], { stdio: ['ignore', 'ignore', 'ignore'] }))
    writeFileSync(join(folder, 'index.html'), 'the world\n')
    daemon = await startDaemon({
      netns: host.path,
      resolvers: join(folder, 'resolv.conf'),
      flags: ['--cpu-oversubscription', '32'],
    })
    const guest = (name: string) => createVm(daemon, { name, memory_mb: 192, cmd: ['sleep', '100000'] })
    await Promise.all([guest('a'), guest('b')])
  }, 240_000)
  afterAll(async () => {
    await clean(daemon)
    for (const server of servers) server.kill()
    host[Symbol.dispose]()
    world[Symbol.dispose]()
    rmSync(folder, { recursive: true })
  })

  test('a guest has its address, its way out, its resolver and its name', async () => {
    const a = await daemon.client.call('vm.get', at('a'))
    const said = await say(
      'a',
      'ip -4 addr show eth0; ip route; cat /etc/resolv.conf /etc/hosts /sys/class/net/eth0/mtu',
    )

    expect(said).toContain(`inet ${a.ip_address}/24`)
    expect(said).toContain('default via 10.42.0.1 dev eth0')
    expect(said).toContain('nameserver 10.42.0.1')
    expect(said).toContain('search default.aerie')
    expect(said).toContain(`${a.ip_address}\ta`)
    expect(said).toContain('1500')
  }, 120_000)

  test('stats count what a guest received and sent, as the guest itself does', async () => {
    const own = async () => {
      const [rx = 0, tx = 0] = (await say('a', 'cd /sys/class/net/eth0/statistics; cat rx_bytes tx_bytes'))
        .trim()
        .split('\n')
        .map(Number)
      return { rx, tx }
    }
    const seen = async () => (await daemon.client.call('vm.stats', at('a'))).network[0]
    const [guestBefore, before] = [await own(), await seen()]
    await say('a', 'ping -q -c 20 -A -s 1000 10.42.0.1; ping -q -c 1 -W 1 -s 40000 203.0.113.9')
    const [guest, after] = [await own(), await seen()]

    expect(after).toMatchObject({
      network: 'default',
      mac_address: (await daemon.client.call('vm.get', at('a'))).mac_address,
    })
    const sent = (after?.tx_bytes ?? 0) - (before?.tx_bytes ?? 0)
    const received = (after?.rx_bytes ?? 0) - (before?.rx_bytes ?? 0)
    expect(sent).toBeGreaterThan(received + 20_000) // so that one is not taken for the other
    expect(received).toBeGreaterThanOrEqual(20 * 1000)
    expect(Math.abs(sent - (guest.tx - guestBefore.tx))).toBeLessThan(4000)
    expect(Math.abs(received - (guest.rx - guestBefore.rx))).toBeLessThan(4000)
    expect((await cli(daemon, ['stats', '--no-stream', 'a'])).stdout).toContain('NET I/O')
  }, 120_000)

  test('a card receives and sends as fast as its vm says, over time', async () => {
    const RATE = 1_500_000
    await createVm(daemon, {
      name: 'slow',
      memory_mb: 192,
      cmd: ['sleep', '100000'],
      network_bandwidth_download: '12Mbps',
      network_bandwidth_upload: RATE,
    })
    const outside = () => {
      const [{ stats64 }] = world.ip('-s', 'link', 'show', 'up1') as unknown as [{ stats64: { rx: { bytes: number } } }]
      return stats64.rx.bytes
    }
    const received = async () => (await daemon.client.call('vm.stats', at('slow'))).network[0]?.rx_bytes ?? 0
    /** Bytes a second of what counts, from its third second on, when the first burst is over. */
    const rateOf = async (count: () => number | Promise<number>, command: string) => {
      const running = code('slow', `timeout 10 sh -c '${command}'`)
      await Bun.sleep(3000)
      const [began, before] = [performance.now(), await count()]
      await Bun.sleep(6000)
      const rate = (((await count()) - before) / (performance.now() - began)) * 1000
      await running
      return rate
    }
    try {
      const down = await rateOf(received, `nc ${SERVER} 9001 > /dev/null`)
      const up = await rateOf(outside, `nc ${SERVER} 9000 < /dev/zero`)
      for (const rate of [down, up]) {
        expect(rate).toBeGreaterThan(0.9 * RATE)
        expect(rate).toBeLessThan(1.1 * RATE)
      }
    } finally {
      await daemon.client.call('vm.delete', at('slow'))
    }
  }, 120_000)

  test('guests of one network speak by name, and names are told both ways', async () => {
    const b = await daemon.client.call('vm.get', at('b'))
    expect(await code('a', 'ping -c 1 b && ping -c 1 b.default.aerie')).toBe(0)
    expect(await say('a', `nslookup ${b.ip_address}`)).toContain('name = b.default.aerie')
    expect(await code('a', 'nslookup nobody.default.aerie')).not.toBe(0)
  }, 120_000)

  test('a guest reaches the world by NAT and by name, and nothing of the host or its metadata', async () => {
    expect(await fetches('a', `http://${SERVER}/index.html`)).toBe(true)
    expect(await fetches('a', 'http://example.com/index.html')).toBe(true)
    const listening = Bun.spawn([
      'nsenter',
      `--net=${host.path}`,
      'busybox',
      'httpd',
      '-f',
      '-p',
      '0.0.0.0:8099',
      '-h',
      folder,
    ])
    try {
      for (const address of ['10.42.0.1', '192.0.2.2', '127.0.0.1'])
        expect([address, await fetches('a', `http://${address}:8099/index.html`)]).toEqual([address, false])
      expect(await fetches('a', 'http://169.254.169.254/')).toBe(false)
    } finally {
      listening.kill()
    }
  }, 120_000)

  test('a list of what may be reached lets one name through and nothing else, also while the guest runs', async () => {
    const egress = async (egress: object) => {
      await daemon.client.call('network.update', { ...at('default'), body: { egress: egress as never } })
    }
    try {
      await egress({ policy: 'none' })
      expect(await fetches('a', `http://${SERVER}/index.html`)).toBe(false)

      await egress({ policy: 'allow-list', allow: [{ name: 'example.com', ports: '80', protocol: 'tcp' }] })
      expect(await fetches('a', `http://${SERVER}/index.html`)).toBe(false) // nobody has asked for the name
      expect(await fetches('a', 'http://example.com/index.html')).toBe(true)
      expect(await fetches('a', 'http://example.org/index.html')).toBe(false)
      expect(await fetches('a', `http://${OTHER}/index.html`)).toBe(false)
      expect(await code('a', `nslookup example.com ${RESOLVER}`)).not.toBe(0)
      expect(await fetches('b', `http://${SERVER}/index.html`)).toBe(false) // what another guest has asked for

      await egress({ policy: 'allow-list', allow: [{ cidr: `${OTHER}/32`, ports: '80', protocol: 'tcp' }] })
      expect(await fetches('a', `http://${OTHER}/index.html`)).toBe(true)
      expect(await fetches('a', `http://${SERVER}/index.html`)).toBe(false)
    } finally {
      await egress({ policy: 'all' })
    }
    expect(await fetches('a', `http://${SERVER}/index.html`)).toBe(true)
  }, 120_000)

  test('a guest that says it is somebody else is not heard, and it is counted', async () => {
    const link = await linkOf('b')
    const before = await dropped(link)
    const own = (await daemon.client.call('vm.get', at('b'))).mac_address

    await say(
      'b',
      'ip addr add 10.42.0.200/24 dev eth0; ping -c 1 -W 1 -I 10.42.0.200 10.42.0.1; ip addr del 10.42.0.200/24 dev eth0',
    )
    await say('b', 'arping -U -c 1 -I eth0 -s 10.42.0.1 10.42.0.1')
    await say(
      'b',
      'ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up; ping -c 1 -W 1 10.42.0.1',
    )
    const after = await dropped(link)
    await say(
      'b',
      `ip link set eth0 down; ip link set eth0 address ${own}; ip link set eth0 up; ip route add default via 10.42.0.1`,
    )

    expect(after['mac']).toBeGreaterThan(before['mac'] ?? 0)
    expect((after['ipv4'] ?? 0) + (after['arp'] ?? 0)).toBeGreaterThan((before['ipv4'] ?? 0) + (before['arp'] ?? 0))
    expect(await code('b', 'ping -c 1 a')).toBe(0)
  }, 120_000)

  test('a published port leads into the guest: from the host, from outside, and from guests', async () => {
    const p = await createVm(daemon, {
      name: 'p',
      memory_mb: 192,
      publish: ['8088:80', '0.0.0.0:8090:80', '[::]:8090:80'],
      cmd: ['sh', '-c', 'mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www'],
    })
    const get = (netns: Netns, url: string) =>
      Bun.spawnSync(['nsenter', `--net=${netns.path}`, 'curl', '-s', '-m', '5', '-g', url]).stdout.toString()
    await until(() => get(host, 'http://127.0.0.1:8088/') === 'hello\n')

    expect(get(host, 'http://[::1]:8088/')).toBe('hello\n')
    expect(get(host, 'http://192.0.2.2:8090/')).toBe('hello\n')
    expect(get(world, 'http://192.0.2.2:8090/')).toBe('hello\n')
    expect(get(world, 'http://192.0.2.2:8088/')).toBe('')
    world.run('ip', 'route', 'add', '10.42.0.0/24', 'via', '192.0.2.2')
    expect(get(world, `http://${p.ip_address}/`)).toBe('') // its own address is nobody's outside
    expect(await say('a', 'timeout 6 wget -q -O - http://192.0.2.2:8090/')).toBe('hello\n')
    expect(await say('p', 'timeout 6 wget -q -O - http://192.0.2.2:8090/')).toBe('hello\n')
    await daemon.client.call('vm.delete', at('p'))
    expect(get(host, 'http://127.0.0.1:8088/')).toBe('')
  }, 120_000)

  test('what sleeps is not found by name, and wakes with its address; a clone has its own', async () => {
    const b = await daemon.client.call('vm.get', at('b'))
    await daemon.client.call('vm.standby', at('b'))
    await until(async () => (await code('a', 'nslookup b')) !== 0)
    await daemon.client.call('vm.restore', at('b'))

    expect((await daemon.client.call('vm.get', at('b'))).ip_address).toBe(b.ip_address)
    expect(await code('b', 'ping -c 1 a')).toBe(0)
    expect(await fetches('b', `http://${SERVER}/index.html`)).toBe(true)

    const { vms } = await daemon.client.call('vm.fork', { ...at('b'), body: { name: 'c' } })
    const clone = vms[0]
    expect(clone?.ip_address).not.toBe(b.ip_address)
    expect(await say('c', 'ip -4 addr show eth0; cat /sys/class/net/eth0/address')).toMatch(
      new RegExp(`inet ${clone?.ip_address}/24[^]*${clone?.mac_address}`),
    )
    expect(await code('c', 'ping -c 1 b && ping -c 1 a')).toBe(0)
    expect(await code('a', 'ping -c 1 b && ping -c 1 c')).toBe(0)
    await daemon.client.call('vm.delete', at('c'))
  }, 120_000)

  test('the daemon may be killed: guests reach the world and one another meanwhile, and after it', async () => {
    const flow = cli(daemon, ['exec', 'a', '--', 'true'])
    await flow
    await daemon.crash()
    const tables = host.run('nft', 'list', 'tables')
    daemon = await startDaemon({
      netns: host.path,
      folder: daemon.folder,
      resolvers: join(folder, 'resolv.conf'),
      flags: ['--cpu-oversubscription', '32'],
    })

    expect(tables).toContain('aerie-')
    expect(await code('a', 'ping -c 1 b')).toBe(0)
    expect(await fetches('a', 'http://example.com/index.html')).toBe(true)
  }, 120_000)

  test('guests of an isolated network have one another and nobody else; exec reaches them all the same', async () => {
    await daemon.client.call('network.create', { body: { name: 'iso', type: 'isolated' } })
    const guest = (name: string, mode: 'bridged' | 'dhcp') =>
      createVm(daemon, { name, memory_mb: 192, cmd: ['sleep', '100000'], network: { mode, network: 'iso' } })
    const [, y] = await Promise.all([guest('x', 'bridged'), guest('y', 'dhcp')])

    expect(await say('y', 'ip -4 addr show eth0')).toContain(`inet ${y.ip_address}/24`) // which it asked for
    expect(await code('x', 'ping -c 1 y')).toBe(0)
    expect(await say('x', 'ip route')).not.toContain('default')
    const a = await daemon.client.call('vm.get', at('a'))
    for (const address of [a.ip_address, '192.0.2.2', SERVER]) {
      expect([address, await code('x', `ping -c 1 -W 1 ${address}`)]).not.toEqual([address, 0])
      await say('x', 'ip route add default via 10.42.1.1')
      expect([address, await code('x', `ping -c 1 -W 1 ${address}`)]).not.toEqual([address, 0])
    }
  }, 120_000)

  test('a guest on a NIC of the host is there as a machine of its own', async () => {
    await daemon.client.call('network.create', { body: { name: 'lan', type: 'macvtap', parent: 'up0' } })
    await createVm(daemon, { name: 'm', memory_mb: 192, cmd: ['sleep', '100000'], network: { network: 'lan' } })

    await say('m', 'ip addr add 192.0.2.9/24 dev eth0')

    expect(await code('m', 'ping -c 1 -W 2 192.0.2.1')).toBe(0)
    expect(world.run('ip', 'neigh')).toContain((await daemon.client.call('vm.get', at('m'))).mac_address)
    await daemon.client.call('vm.delete', at('m'))
    await daemon.client.call('network.delete', at('lan'))
  }, 120_000)
})
