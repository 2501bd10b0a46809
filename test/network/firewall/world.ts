import { join } from 'node:path'
import { Firewall, type FirewallOptions } from '../../../src/network/firewall/live-firewall.ts'
import type { Description, FirewallNetwork, FirewallNic } from '../../../src/network/firewall/description.ts'
import { Netns } from '../../linux/netns.ts'

/** A namespace with a program in it that speaks: a guest, the host, somebody outside. */
export class Place implements AsyncDisposable {
  readonly netns = new Netns()
  readonly #agent = Bun.spawn(['nsenter', `--net=${this.netns.path}`, 'python3', join(import.meta.dir, 'agent.py')], {
    stdin: 'pipe',
    stdout: 'pipe',
    stderr: 'inherit',
  })
  readonly #lines = this.#read()

  constructor() {
    this.netns.run('ip', 'link', 'set', 'lo', 'up')
  }

  async *#read(): AsyncGenerator<string, void> {
    let rest = ''
    for await (const chunk of this.#agent.stdout.pipeThrough(new TextDecoderStream())) {
      const parts = (rest + chunk).split('\n')
      rest = parts.pop() ?? ''
      yield* parts
    }
  }

  /** Runs one command of `agent.py`. */
  async ask(...command: unknown[]): Promise<unknown> {
    this.#agent.stdin.write(`${JSON.stringify(command)}\n`)
    this.#agent.stdin.flush()
    const { value } = await this.#lines.next()
    return value === undefined ? 'gone' : (JSON.parse(value) as unknown)
  }

  listen = (kind: 'tcp' | 'udp', address: string, port: number) => this.ask('listen', kind, address, port)
  tcp = (address: string, port: number, timeout = 4) => this.ask('tcp', address, port, timeout)
  udp = (address: string, port: number, timeout = 0.3) => this.ask('udp', address, port, timeout)
  ping = (address: string, timeout = 1) => this.ask('ping', address, timeout)
  send = (...frames: string[]) => this.ask('send', frames)

  async [Symbol.asyncDispose](): Promise<void> {
    this.#agent.stdin.end()
    this.#agent.kill()
    await this.#agent.exited
    this.netns[Symbol.dispose]()
  }
}

export const NETWORK: FirewallNetwork = {
  name: 'default',
  bridge: 'aerie0',
  kind: 'bridged',
  subnet: '10.42.0.0/24',
  gateway: '10.42.0.1',
  subnet6: 'fd42::/64',
  gateway6: 'fd42::1',
  peer: 'open',
  nat: true,
  egress: { policy: 'all', allow: [] },
}

export const OTHER: FirewallNetwork = {
  ...NETWORK,
  name: 'other',
  bridge: 'aerie1',
  subnet: '10.43.0.0/24',
  gateway: '10.43.0.1',
  subnet6: 'fd43::/64',
  gateway6: 'fd43::1',
}

export const nicOf = (number: number, more: Partial<FirewallNic> = {}): FirewallNic => ({
  link: `veth-g${number}-h`,
  network: 'default',
  mac: `02:00:00:00:00:0${number}`,
  addresses: [`10.42.0.${number}`, `fd42::${number}`],
  dhcp: false,
  ...more,
})

/**
 * A host with a bridge and an uplink, guests 2 and 3 on the bridge, a guest 4 on another one, and somebody outside, who
 * has no route to the guests.
 */
export class World implements AsyncDisposable {
  readonly host = new Place()
  readonly outside = new Place()
  readonly guests = { 2: new Place(), 3: new Place(), 4: new Place() } as const
  #firewall: Firewall | undefined

  constructor() {
    const { host, outside } = this
    const ip = (place: Place, ...words: string[]) => place.netns.run('ip', ...words)
    ip(host, 'link', 'add', 'up0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', outside.netns.path)
    for (const [place, link, last] of [
      [host, 'up0', 1],
      [outside, 'eth0', 2],
    ] as const) {
      ip(place, 'addr', 'add', `192.0.2.${last}/24`, 'dev', link)
      ip(place, 'addr', 'add', `2001:db8::${last}/64`, 'dev', link, 'nodad')
      ip(place, 'link', 'set', link, 'up')
    }
    // Names and clouds: addresses of the outside that are everybody's, and one that is not.
    for (const address of ['93.184.216.34', '93.184.216.35', '169.254.169.254'])
      ip(outside, 'addr', 'add', `${address}/32`, 'dev', 'lo')
    ip(outside, 'addr', 'add', '2606:2800::34/128', 'dev', 'lo', 'nodad')
    ip(host, 'route', 'add', 'default', 'via', '192.0.2.2')
    ip(host, 'route', 'add', 'default', 'via', '2001:db8::2')
    for (const [bridge, subnet, prefix] of [
      ['aerie0', '10.42.0', 'fd42'],
      ['aerie1', '10.43.0', 'fd43'],
    ] as const) {
      ip(host, 'link', 'add', bridge, 'type', 'bridge', 'forward_delay', '0')
      ip(host, 'addr', 'add', `${subnet}.1/24`, 'dev', bridge)
      ip(host, 'addr', 'add', `${prefix}::1/64`, 'dev', bridge, 'nodad')
      ip(host, 'link', 'set', bridge, 'up')
    }
    for (const [number, bridge, subnet, prefix] of [
      [2, 'aerie0', '10.42.0', 'fd42'],
      [3, 'aerie0', '10.42.0', 'fd42'],
      [4, 'aerie1', '10.43.0', 'fd43'],
    ] as const) {
      const guest = this.guests[number]
      const link = `veth-g${number}-h`
      ip(host, 'link', 'add', link, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', guest.netns.path)
      ip(host, 'link', 'set', link, 'master', bridge, 'up')
      ip(guest, 'link', 'set', 'eth0', 'address', `02:00:00:00:00:0${number}`, 'up')
      ip(guest, 'addr', 'add', `${subnet}.${number}/24`, 'dev', 'eth0')
      ip(guest, 'addr', 'add', `${prefix}::${number}/64`, 'dev', 'eth0', 'nodad')
      ip(guest, 'route', 'add', 'default', 'via', `${subnet}.1`)
      ip(guest, 'route', 'add', 'default', 'via', `${prefix}::1`)
    }
    host.netns.run(
      'sysctl',
      '-qw',
      'net.ipv4.ip_forward=1',
      'net.ipv6.conf.all.forwarding=1',
      'net.bridge.bridge-nf-call-iptables=0',
      'net.bridge.bridge-nf-call-ip6tables=0',
    )
  }

  get firewall(): Firewall {
    if (!this.#firewall) throw new Error('no firewall yet')
    return this.#firewall
  }

  get isProtected(): boolean {
    return this.#firewall !== undefined
  }

  /** Puts a firewall, or another one, before this host. */
  protect(description: Partial<Description> = {}, options: Partial<FirewallOptions> = {}): Firewall {
    const whole = {
      networks: [NETWORK, OTHER],
      nics: [nicOf(2), nicOf(3), nicOf(4, { network: 'other', addresses: ['10.43.0.4', 'fd43::4'] })],
      published: [],
      ...description,
    }
    if (this.#firewall) this.#firewall.rebuild(whole)
    else this.#firewall = Firewall.open({ table: 'aerie', netns: this.host.netns.fd, ...options }, whole)
    return this.#firewall
  }

  /** Lets go of the firewall, as a daemon that ends does. */
  leave(): void {
    this.#firewall?.[Symbol.dispose]()
    this.#firewall = undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.leave()
    for (const place of [this.host, this.outside, ...Object.values(this.guests)]) await place[Symbol.asyncDispose]()
  }
}
