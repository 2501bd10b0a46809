/** What a network or a vm's card may reach outside. */
export interface Egress {
  readonly policy: 'all' | 'none' | 'allow-list'
  /** Read where the policy is `allow-list`. */
  readonly allow: readonly Allow[]
}

/** One line of an allow-list: of `cidr` and `name` at most one; with neither it is about every destination. */
export interface Allow {
  readonly cidr?: string | undefined
  /** A name, or `*.example.org` for all below it: what the resolver learns of it is let through by `learn`. */
  readonly name?: string | undefined
  /** Both TCP and UDP where there are ports and no `proto`. */
  readonly proto?: 'tcp' | 'udp' | 'icmp' | undefined
  /** `443`, `8000-8010`; all where left out. */
  readonly ports?: readonly string[] | undefined
}

/** A network whose bridge stands in the namespace of this firewall. */
export interface FirewallNetwork {
  readonly name: string
  readonly bridge: string
  readonly kind: 'bridged' | 'host-only' | 'isolated' | 'macvtap'
  readonly subnet: string | null
  readonly gateway: string | null
  readonly subnet6: string | null
  readonly gateway6: string | null
  /**
   * Whether guests of it may speak to one another. Between ports that is the bridge's; here it is what the host would
   * route.
   */
  readonly peer: 'open' | 'closed'
  /** Whether the host puts its own address before those of the guests. */
  readonly nat: boolean
  readonly egress: Egress
}

/** A port of a bridge: a vm's tap, or the host's end of a container's pair. */
export interface FirewallNic {
  readonly link: string
  readonly network: string
  readonly mac: string
  /** What it may send from; the link-local address of its MAC is one without being named. */
  readonly addresses: readonly string[]
  /** Whether it asks for its address. */
  readonly dhcp: boolean
  /** Bytes a second that it may send; undefined: as many as it can. */
  readonly upload?: number | undefined
  /** Undefined or null: its network's. */
  readonly egress?: Egress | null | undefined
}

/** A port of the host, on an address that is no loopback one. */
export interface Published {
  readonly proto: 'tcp' | 'udp'
  /** `0.0.0.0` and `::` are every address of the host. */
  readonly address: string
  readonly port: number
  /** The last of a range. */
  readonly portEnd?: number | undefined
  readonly target: string
  /** The port of the first of a range; those behind it follow. */
  readonly targetPort: number
}

/** All that the firewall of a host is made from. */
export interface Description {
  readonly networks: readonly FirewallNetwork[]
  readonly nics: readonly FirewallNic[]
  readonly published: readonly Published[]
}
