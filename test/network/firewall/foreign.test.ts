import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import { Netlink, PROTOCOL } from '../../../src/linux/netlink/netlink.ts'
import { droppingChains, type ForeignFinding, kernelFindings } from '../../../src/network/firewall/foreign.ts'
import { Netns } from '../../linux/netns.ts'
import { isRoot } from '../../linux/support.ts'
import { World } from './world.ts'

const SOURCE = join(import.meta.dir, '../../../src/network/firewall/foreign.ts')

const found = (netns: Netns): ForeignFinding[] => {
  using netlink = Netlink.open(PROTOCOL.netfilter, netns.fd)
  return droppingChains(netlink, ['aerie0'], ({ name }) => name === 'aerie')
}

/** Makes rules as others make them, by what they are made with. */
const rule = (netns: Netns, ...lines: string[]): void => {
  for (const line of lines) netns.run(...line.split(' '))
}

describe.skipIf(!isRoot)('rules of others', () => {
  let netns: Netns
  beforeEach(() => {
    netns = new Netns()
  })
  afterEach(() => {
    netns[Symbol.dispose]()
  })

  test('a host without any has nothing to tell', () => {
    rule(netns, 'iptables -P FORWARD ACCEPT', 'iptables -A FORWARD -s 192.0.2.1 -j DROP')

    expect(found(netns)).toEqual([])
  })

  const cases: readonly (readonly [
    what: string,
    made: readonly string[],
    kind: ForeignFinding['kind'],
    where: string,
    line: string,
    heals: readonly string[],
  ])[] = [
    [
      'a policy of iptables',
      ['iptables -P FORWARD DROP'],
      'iptables',
      'ip filter FORWARD',
      'iptables -I FORWARD -i aerie0 -j ACCEPT',
      ['iptables -I FORWARD -i aerie0 -j ACCEPT', 'iptables -I FORWARD -o aerie0 -j ACCEPT'],
    ],
    [
      'a policy of ip6tables',
      ['ip6tables -P FORWARD DROP'],
      'iptables',
      'ip6 filter FORWARD',
      'ip6tables -I FORWARD -i aerie0 -j ACCEPT',
      ['ip6tables -I FORWARD -i aerie+ -j ACCEPT', 'ip6tables -I FORWARD -o aerie+ -j ACCEPT'],
    ],
    [
      'a last rule of iptables',
      ['iptables -A FORWARD -j REJECT --reject-with icmp-host-prohibited'],
      'iptables',
      'ip filter FORWARD',
      'iptables -I FORWARD -o aerie0 -j ACCEPT',
      ['iptables -I FORWARD -i aerie0 -j ACCEPT', 'iptables -I FORWARD -o aerie0 -j ACCEPT'],
    ],
    [
      'a policy for what comes to the host',
      ['iptables -P INPUT DROP'],
      'iptables',
      'ip filter INPUT',
      'iptables -I INPUT -i aerie0 -p udp --dport 67 -j ACCEPT',
      ['iptables -I INPUT -i aerie0 -p udp --dport 67 -j ACCEPT'],
    ],
    [
      'Docker',
      ['iptables -P FORWARD DROP', 'iptables -N DOCKER-USER', 'iptables -A FORWARD -j DOCKER-USER'],
      'docker',
      'ip filter FORWARD',
      'iptables -I DOCKER-USER -i aerie0 -j ACCEPT',
      ['iptables -I DOCKER-USER -i aerie0 -j ACCEPT', 'iptables -I DOCKER-USER -o aerie0 -j ACCEPT'],
    ],
    [
      'ufw',
      ['iptables -P FORWARD DROP', 'iptables -N ufw-user-forward', 'iptables -A FORWARD -j ufw-user-forward'],
      'ufw',
      'ip filter FORWARD',
      'ufw route allow in on aerie0',
      ['iptables -A ufw-user-forward -i aerie0 -j ACCEPT', 'iptables -A ufw-user-forward -o aerie0 -j ACCEPT'],
    ],
    [
      'ufw, for what comes to the host',
      ['iptables -P INPUT DROP', 'iptables -N ufw-user-input', 'iptables -A INPUT -j ufw-user-input'],
      'ufw',
      'ip filter INPUT',
      'ufw allow in on aerie0 to any port 67 proto udp',
      ['iptables -A ufw-user-input -i aerie0 -p udp --dport 67 -j ACCEPT'],
    ],
    [
      'firewalld',
      [
        'nft add table inet firewalld',
        'nft add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; policy accept ; }',
        'nft add chain inet firewalld filter_FWD_trusted',
        'nft add rule inet firewalld filter_FORWARD ct state established,related accept',
        'nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited',
      ],
      'firewalld',
      'inet firewalld filter_FORWARD',
      'firewall-cmd --permanent --zone=trusted --add-interface=aerie0',
      ['nft insert rule inet firewalld filter_FORWARD iifname aerie0 goto filter_FWD_trusted'],
    ],
    [
      'a table of the administrator',
      [
        'nft add table inet mine',
        'nft add chain inet mine forward { type filter hook forward priority 0 ; policy drop ; }',
      ],
      'nftables',
      'inet mine forward',
      'nft insert rule inet mine forward iifname aerie0 accept',
      [
        'nft insert rule inet mine forward iifname aerie0 accept',
        'nft insert rule inet mine forward oifname aerie0 accept',
      ],
    ],
  ]
  for (const [what, made, kind, where, line, heals] of cases)
    test(`${what} is found, and no longer when it lets the bridge through`, () => {
      rule(netns, ...made)

      const findings = found(netns)

      expect(findings.map((one) => [one.kind, one.where])).toEqual([[kind, where]])
      expect(findings[0]?.lines).toContain(line)

      rule(netns, ...heals)

      expect(found(netns)).toEqual([])
    })

  test('a rule for another bridge, or for one way alone, heals nothing', () => {
    rule(netns, 'iptables -P FORWARD DROP')
    rule(netns, 'iptables -I FORWARD -i aerie01 -j ACCEPT', 'iptables -I FORWARD -o aerie01 -j ACCEPT')
    rule(netns, 'iptables -I FORWARD -i aerie0 -j ACCEPT', 'iptables -I FORWARD -o aerie0 -j DROP')

    expect(found(netns).map(({ kind }) => kind)).toEqual(['iptables'])
  })

  test('what the kernel does besides is found where it is on, and not where it is off', () => {
    const ask = (): string[] =>
      (
        JSON.parse(
          netns.run(
            process.execPath,
            '-e',
            `import { kernelFindings } from ${JSON.stringify(SOURCE)}; console.log(JSON.stringify(kernelFindings(['aerie0'])))`,
          ),
        ) as ForeignFinding[]
      ).flatMap(({ kind, lines }) => (kind === 'br_netfilter' ? lines : []))
    const sysctl = (value: number) =>
      rule(netns, `sysctl -qw net.bridge.bridge-nf-call-iptables=${value} net.bridge.bridge-nf-call-ip6tables=${value}`)

    sysctl(1)
    expect(ask()).toEqual([
      'sysctl -w net.bridge.bridge-nf-call-iptables=0',
      'sysctl -w net.bridge.bridge-nf-call-ip6tables=0',
    ])

    sysctl(0)
    expect(ask()).toEqual([])
    expect(Array.isArray(kernelFindings([]))).toBe(true)
  })

  test('the lines that are told bring guests through', async () => {
    await using world = new World()
    const { host, guests, outside } = world
    world.protect()
    await outside.listen('tcp', '0.0.0.0', 80)
    await host.listen('udp', '0.0.0.0', 53)
    rule(host.netns, 'iptables -P FORWARD DROP', 'iptables -P INPUT DROP')
    expect(await guests[2].tcp('192.0.2.2', 80, 0.3)).toBe('TimeoutError')
    expect(await guests[2].udp('10.42.0.1', 53)).not.toStartWith('hello')

    const findings = found(host.netns)
    expect(findings.map(({ where }) => where).toSorted()).toEqual(['ip filter FORWARD', 'ip filter INPUT'])
    for (const { lines } of findings) rule(host.netns, ...lines)

    expect(found(host.netns)).toEqual([])
    expect(await guests[2].tcp('192.0.2.2', 80)).toBe('hello 192.0.2.1')
    expect(await guests[2].udp('10.42.0.1', 53)).toBe('hello 10.42.0.2')
  }, 20_000)
})
