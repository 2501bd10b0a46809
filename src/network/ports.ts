import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { isIPv6 } from 'node:net'
import { and, eq } from 'drizzle-orm'
import { PUBLISH_MAX } from '../contract/port.ts'
import { requestInvalid } from '../lib/errors.ts'
import { hasCode } from '../linux/errno.ts'
import { closeFd } from '../linux/fd.ts'
import { bindSocket, listenSocket, portOf, setOption, socketAddress, socketIn } from '../linux/inet.ts'
import { u32 } from '../linux/netlink/message.ts'
import { leases, type PortRow, ports, vms } from '../store/schema.ts'
import type { Store } from '../store/store.ts'
import { bytesV4, readV4, readV6, sayV4, sayV6 } from './address.ts'
import { portDenied, portInUse } from './errors.ts'

const AF_INET = 2
const AF_INET6 = 10
const STREAM = 1
const DATAGRAM = 2
const SOL_SOCKET = 1
const REUSE_ADDRESS = 2
const IPPROTO_IPV6 = 41
const IPV6_V6ONLY = 26
/** Attempts to find a port that is free at two addresses. */
const CHANCES = 20

/** A port that is asked for; 0 is any that is free. */
export interface WantedPort {
  readonly protocol: 'tcp' | 'udp'
  readonly addresses: readonly string[]
  readonly port: number
  readonly guestPort: number
}

/** A port of this host that is ours as long as its socket is open. */
export interface HeldPort {
  readonly protocol: 'tcp' | 'udp'
  readonly address: string
  readonly port: number
  readonly guestPort: number
  readonly fd: number
}

const FORM =
  /^(?:(?:\[([0-9a-fA-F:.]+)\]|(\d{1,3}(?:\.\d{1,3}){3})):)?(?:(\d{1,5})(?:-(\d{1,5}))?:)?(\d{1,5})(?:-(\d{1,5}))?(?:\/(tcp|udp))?$/
const LOOPBACK = ['127.0.0.1', '::1'] as const

/** Reads what a vm publishes. @throws `request_invalid` */
export const readPublished = (texts: readonly string[]): WantedPort[] => {
  const wanted = texts.flatMap(readOne)
  if (wanted.length > PUBLISH_MAX)
    throw requestInvalid({
      field: 'publish',
      reason: `these are ${wanted.length} ports, and ${PUBLISH_MAX} are the most`,
    })
  const seen = new Set<string>()
  for (const { protocol, addresses, port } of wanted)
    for (const address of port === 0 ? [] : addresses) {
      const key = `${protocol} ${address} ${port}`
      if (seen.has(key))
        throw requestInvalid({ field: 'publish', reason: `port ${port}/${protocol} of ${address} is there twice` })
      seen.add(key)
    }
  return wanted
}

const readOne = (text: string): WantedPort[] => {
  const invalid = (reason: string) => requestInvalid({ field: 'publish', reason: `"${text}": ${reason}` })
  const [, six, four, hostFirst = '0', hostLast, guestFirst = '', guestLast, protocol = 'tcp'] = FORM.exec(text) ?? []
  if (guestFirst === '') throw invalid('expected [ADDRESS:]HOST:GUEST[/tcp|udp]')
  const [guest, guestEnd] = [Number(guestFirst), Number(guestLast ?? guestFirst)]
  const [host, hostEnd] = [Number(hostFirst), Number(hostLast ?? hostFirst)]
  const count = guestEnd - guest + 1
  if (guest < 1 || guestEnd > 65_535 || hostEnd > 65_535) throw invalid('a port is 1 to 65535')
  if (count < 1 || hostEnd < host) throw invalid('a range ends where it begins, or behind')
  if (host !== 0 && hostEnd - host + 1 !== count) throw invalid('its two ranges differ in length')
  const bytes = six === undefined ? undefined : readV6(six)
  const number = four === undefined ? undefined : readV4(four)
  if ((six !== undefined && !bytes) || (four !== undefined && number === undefined))
    throw invalid('its address is none')
  const address = bytes ? sayV6(bytes) : number === undefined ? undefined : sayV4(number)
  const addresses = address === undefined ? LOOPBACK : [address]
  return Array.from({ length: count }, (_, index) => ({
    protocol: protocol as 'tcp' | 'udp',
    addresses,
    port: host === 0 ? 0 : host + index,
    guestPort: guest + index,
  }))
}

/** Whether an address is of the loopback: its connections are carried by the helper, and no packet is rewritten. */
export const isLoopback = (address: string): boolean => address.startsWith('127.') || address === '::1'

/** Writes a held port as it is asked for. */
export const sayPublished = (held: readonly Omit<HeldPort, 'fd'>[]): string[] => {
  const both = new Set(
    held.filter(({ address }) => address === '::1').map(({ protocol, port }) => `${protocol} ${port}`),
  )
  return held
    .filter(
      ({ address, protocol, port }) =>
        address !== '::1' ||
        !held.some((one) => one.address === '127.0.0.1' && one.port === port && one.protocol === protocol),
    )
    .map(({ protocol, address, port, guestPort }) => {
      const end = `${port}:${guestPort}/${protocol}`
      if (address === '127.0.0.1' && both.has(`${protocol} ${port}`)) return end
      return isIPv6(address) ? `[${address}]:${end}` : `${address}:${end}`
    })
}

/**
 * Takes ports of this host by binding them. Those of the loopback listen already; the others are only held, so that nobody else gets them,
 * and packets to them are rewritten.
 *
 * @throws `port_in_use`, `port_denied`, `request_invalid`: this host has no such address; nothing is held then
 */
export const holdPorts = (store: Store, wanted: readonly WantedPort[]): HeldPort[] => {
  const held: HeldPort[] = []
  try {
    for (const one of wanted) held.push(...holdOne(store, one))
    return held
  } catch (error) {
    letGo(held)
    throw error
  }
}

export const letGo = (held: readonly HeldPort[]): void => {
  for (const { fd } of held) closeFd(fd)
}

const holdOne = (store: Store, { protocol, addresses, port, guestPort }: WantedPort): HeldPort[] => {
  for (let attempt = 0; ; attempt++) {
    const held: HeldPort[] = []
    try {
      for (const address of addresses) {
        const asked = held[0]?.port ?? port
        const fd = bindPort(protocol, address, asked)
        if (fd !== undefined) held.push({ protocol, address, port: portOf(fd), guestPort, fd })
      }
      return held
    } catch (error) {
      letGo(held)
      if (port === 0 && hasCode(error, 'EADDRINUSE') && attempt < CHANCES) continue
      throw refusal(store, error, { protocol, address: addresses[held.length] ?? '', port })
    }
  }
}

/** Binds one port; undefined for the IPv6 loopback of a host without IPv6. */
export const bindPort = (protocol: 'tcp' | 'udp', address: string, port: number): number | undefined => {
  const six = isIPv6(address)
  const bytes = six ? readV6(address) : bytesV4(readV4(address) ?? 0)
  let fd: number | undefined
  try {
    fd = socketIn(undefined, six ? AF_INET6 : AF_INET, protocol === 'tcp' ? STREAM : DATAGRAM, 0)
    if (six) setOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, u32(1))
    // A listener may follow one whose connections are still being forgotten; two at once are refused all the same.
    if (protocol === 'tcp' && isLoopback(address)) setOption(fd, SOL_SOCKET, REUSE_ADDRESS, u32(1))
    bindSocket(fd, socketAddress(bytes ?? Buffer.alloc(16), port))
    if (protocol === 'tcp' && isLoopback(address)) listenSocket(fd)
    return fd
  } catch (error) {
    if (fd !== undefined) closeFd(fd)
    if (address === '::1' && hasCode(error, 'EADDRNOTAVAIL', 'EAFNOSUPPORT')) return undefined
    throw error
  }
}

const refusal = (
  store: Store,
  error: unknown,
  { protocol, address, port }: Pick<PortRow, 'protocol' | 'address' | 'port'>,
): unknown => {
  if (hasCode(error, 'EADDRINUSE'))
    return portInUse({ port, protocol, address, by: holderOf(store, protocol, port) ?? 'another program' })
  if (hasCode(error, 'EACCES', 'EPERM')) return portDenied({ port })
  if (hasCode(error, 'EADDRNOTAVAIL'))
    return requestInvalid({ field: 'publish', reason: `this host has no address ${address}` })
  return error
}

/** Says who has a port: a vm of ours, or a program whose descriptors may be looked at. */
const holderOf = (store: Store, protocol: 'tcp' | 'udp', port: number): string | undefined => {
  const ours = store
    .select({ name: vms.name })
    .from(ports)
    .innerJoin(vms, eq(vms.uid, ports.vmUid))
    .where(and(eq(ports.protocol, protocol), eq(ports.port, port)))
    .get()
  return ours ? `vm "${ours.name}"` : programOf(protocol, port)
}

const programOf = (protocol: 'tcp' | 'udp', port: number): string | undefined => {
  const hex = port.toString(16).toUpperCase().padStart(4, '0')
  const inodes = new Set(
    [protocol, `${protocol}6`].flatMap((name) => {
      try {
        return readFileSync(`/proc/net/${name}`, 'latin1')
          .split('\n')
          .map((line) => line.trim().split(/\s+/))
          .filter(
            ([, local = '', , state]) =>
              local.endsWith(`:${hex}`) && (protocol === 'udp' || state === '0A' || state === '07'),
          )
          .map((fields) => `socket:[${fields[9]}]`)
      } catch {
        return []
      }
    }),
  )
  if (inodes.size === 0) return undefined
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      for (const fd of readdirSync(`/proc/${pid}/fd`))
        if (inodes.has(readlinkSync(`/proc/${pid}/fd/${fd}`)))
          return `${readFileSync(`/proc/${pid}/comm`, 'utf8').trim()} (pid ${pid})`
    } catch {
      // another user's, or gone
    }
  }
  return undefined
}

const WILDCARDS = ['0.0.0.0', '::'] as const

/** Writes down what a vm publishes; call it in the transaction that makes the vm. @throws `port_in_use` */
export const recordPorts = (tx: Store, vmUid: string, held: readonly HeldPort[]): void => {
  for (const { protocol, address, port, guestPort } of held) {
    const family = isIPv6(address)
    const clash = tx
      .select({ name: vms.name, address: ports.address })
      .from(ports)
      .innerJoin(vms, eq(vms.uid, ports.vmUid))
      .where(and(eq(ports.protocol, protocol), eq(ports.port, port)))
      .all()
      .find((one) => {
        const isWild = (text: string) => (WILDCARDS as readonly string[]).includes(text)
        return one.address === address || (isIPv6(one.address) === family && (isWild(one.address) || isWild(address)))
      })
    if (clash) throw portInUse({ port, protocol, address, by: `vm "${clash.name}"` })
    tx.insert(ports).values({ protocol, address, port, guestPort, vmUid }).run()
  }
}

/** Forgets what a vm publishes; call it in the transaction that deletes the vm. */
export const forgetPorts = (tx: Store, vmUid: string): PortRow[] =>
  tx.delete(ports).where(eq(ports.vmUid, vmUid)).returning().all()

/** Forgets one port of a vm. */
export const forgetPort = (tx: Store, { id }: PortRow): void => {
  tx.delete(ports).where(eq(ports.id, id)).run()
}

/**
 * Compares what a vm publishes with what it is to publish: what stays, what goes, and what must be had first. A port of
 * the host that is to lead to another port of the guest cannot be changed in place.
 *
 * @throws `request_invalid`
 */
export const keepPorts = (
  store: Store,
  vmUid: string,
  wanted: readonly WantedPort[],
): { readonly kept: PortRow[]; readonly gone: PortRow[]; readonly missing: WantedPort[] } => {
  const before = store.select().from(ports).where(eq(ports.vmUid, vmUid)).all()
  const kept = new Set<PortRow>()
  const missing = wanted.flatMap((want) => {
    const without = want.addresses.filter((address) => {
      const there = before.find(
        (one) => one.protocol === want.protocol && one.address === address && one.port === want.port,
      )
      if (there && there.guestPort !== want.guestPort)
        throw requestInvalid({
          field: 'publish',
          reason: `port ${want.port}/${want.protocol} leads to port ${there.guestPort} of the guest: take it back first`,
        })
      if (there) kept.add(there)
      return !there
    })
    return without.length === 0 ? [] : [{ ...want, addresses: without }]
  })
  return { kept: [...kept], gone: before.filter((one) => !kept.has(one)), missing }
}

/** A port with the guest that it leads to. */
export interface LedPort extends PortRow {
  readonly vm: string
  readonly networkUid: string
  readonly guest: string
  readonly guest6: string | null
}

/** Lists the ports that lead into vms. */
export const ledPorts = (store: Store): LedPort[] =>
  store
    .select({ port: ports, vm: vms.name, lease: leases })
    .from(ports)
    .innerJoin(vms, eq(vms.uid, ports.vmUid))
    .innerJoin(leases, and(eq(leases.vmUid, ports.vmUid), eq(leases.nic, 0)))
    .all()
    .map(({ port, vm, lease }) => ({
      ...port,
      vm,
      networkUid: lease.networkUid,
      guest: sayV4(lease.address ?? 0),
      guest6: lease.address6,
    }))
