import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { u32 } from '../../../src/linux/netlink/message.ts'
import { Netlink, type NetlinkError, PROTOCOL } from '../../../src/linux/netlink/netlink.ts'
import {
  addElements,
  chains,
  counterNamed,
  counters,
  DATATYPE,
  deleteChain,
  deleteCounter,
  deleteElements,
  deleteRules,
  deleteSet,
  deleteTable,
  devicesOf,
  elements,
  elementsNamed,
  FAMILY,
  interfaceBytes,
  keyOf,
  newChain,
  newCounter,
  newRule,
  newSet,
  newTable,
  rules,
  type SetShape,
  TABLE_OWNED,
  TABLE_PERSISTS,
  tables,
} from '../../../src/linux/netlink/nft.ts'
import {
  clampSegment,
  compare,
  counter,
  countInto,
  ct,
  CT_STATE,
  dnat,
  extensionHeader,
  fibDestinationType,
  FIB_LOCAL,
  immediate,
  limitPerSecond,
  lookup,
  lookupNot,
  masked,
  masquerade,
  meta,
  payload,
  port,
  redirect,
  rejectProhibited,
  rejectTcp,
  setMark,
  verdict,
  within,
} from '../../../src/linux/netlink/nft-expression.ts'
import { Netns } from '../netns.ts'
import { isRoot, kernelAtLeast } from '../support.ts'

const TABLE = { family: FAMILY.inet, name: 'tried' }
const { ipv4, ipv6, protocol, port: portType, interface: link, mark } = DATATYPE
const A = Uint8Array.of(10, 0, 0, 1)
const B = Uint8Array.of(10, 0, 0, 9)
const TCP = Uint8Array.of(6)

interface Listed {
  readonly set?: Record<string, unknown>
  readonly map?: Record<string, unknown>
  readonly counter?: Record<string, unknown>
}

describe.skipIf(!isRoot)('nf_tables', () => {
  let netns: Netns
  let netlink: Netlink
  const nft = (...words: string[]) => netns.run('nft', ...words)
  const listed = (): Listed[] => (JSON.parse(nft('-j', 'list', 'ruleset')) as { nftables: Listed[] }).nftables
  const set = (name: string) => listed().find((one) => (one.set ?? one.map)?.['name'] === name)
  /** The lines of a chain as `nft` writes them. */
  const linesOf = (chain: string): string[] =>
    nft('list', 'chain', 'inet', 'tried', chain)
      .split('\n')
      .map((line) => line.trim())
      .filter((line) => line !== '' && !/[{}]$/.test(line) && !line.startsWith('type '))

  beforeAll(() => {
    netns = new Netns()
    netlink = Netlink.open(PROTOCOL.netfilter, netns.fd)
  })
  afterAll(() => {
    netlink[Symbol.dispose]()
    netns[Symbol.dispose]()
  })
  beforeEach(() => netlink.commit('make a table', [newTable(TABLE)]))
  afterEach(() => netlink.commit('remove the table', [newTable(TABLE), deleteTable(TABLE)]))

  test('a batch is made whole or not at all, and says which of it was refused', () => {
    const batch = [newChain(TABLE, 'one'), newRule(TABLE, 'nowhere', [verdict('accept')]), newChain(TABLE, 'two')]

    expect(() => netlink.commit('try', batch)).toThrow(
      expect.objectContaining({ code: 'ENOENT', index: 1 }) as unknown as NetlinkError,
    )
    expect(devicesOf(netlink, TABLE, 'one')).toBeUndefined()
    netlink.commit('make a chain', [newChain(TABLE, 'one')])
    expect(devicesOf(netlink, TABLE, 'one')).toEqual([])
  })

  test('sets and maps are printed as they were meant', () => {
    const shapes = {
      plain: { name: 'plain', key: [ipv4] },
      ranges: { name: 'ranges', key: [ipv4], interval: true },
      links: { name: 'links', key: [link] },
      flows: { name: 'flows', key: [ipv4, protocol, portType], interval: true, timeout: true, counter: true },
      flows6: { name: 'flows6', key: [ipv6, portType] },
      targets: { name: 'targets', key: [protocol, portType], data: [ipv4, portType] },
      verdicts: { name: 'verdicts', key: [link], data: 'verdict' },
      marks: { name: 'marks', key: [ipv4], data: [mark] },
    } as const satisfies Record<string, SetShape>
    const flow = (address: Uint8Array, number: number) => keyOf(shapes.flows.key, [address, TCP, port(number)])
    netlink.commit('make sets', [
      ...Object.values(shapes).map((shape) => newSet(TABLE, shape)),
      newChain(TABLE, 'there'),
      ...addElements(TABLE, shapes.plain, [{ key: A, comment: 'the first' }]),
      ...addElements(TABLE, shapes.ranges, [
        { key: A, last: B },
        { key: Uint8Array.of(240, 0, 0, 0), last: Uint8Array.of(255, 255, 255, 255) },
      ]),
      ...addElements(TABLE, shapes.links, [{ key: interfaceBytes('fifteen-letters') }]),
      ...addElements(TABLE, shapes.flows, [
        { key: flow(A, 80), last: flow(B, 90), timeoutMs: 60_000, count: { packets: 7, bytes: 700 } },
      ]),
      ...addElements(TABLE, shapes.flows6, [
        { key: keyOf(shapes.flows6.key, [Buffer.from('fd000000000000000000000000000001', 'hex'), port(443)]) },
      ]),
      ...addElements(TABLE, shapes.targets, [
        { key: keyOf(shapes.targets.key, [TCP, port(8080)]), data: keyOf(shapes.targets.data, [A, port(80)]) },
      ]),
      ...addElements(TABLE, shapes.verdicts, [
        { key: interfaceBytes('up0'), data: { verdict: { goto: 'there' } } },
        { key: interfaceBytes('up1'), data: { verdict: 'drop' } },
      ]),
      ...addElements(TABLE, shapes.marks, [{ key: A, data: u32(7) }]),
    ])

    expect(set('plain')?.set).toMatchObject({
      type: 'ipv4_addr',
      elem: [{ elem: { val: '10.0.0.1', comment: 'the first' } }],
    })
    expect(set('ranges')?.set).toMatchObject({
      flags: ['interval'],
      elem: [{ range: ['10.0.0.1', '10.0.0.9'] }, { prefix: { addr: '240.0.0.0', len: 4 } }],
    })
    expect(set('links')?.set).toMatchObject({ type: 'ifname', elem: ['fifteen-letters'] })
    expect(set('flows')?.set).toMatchObject({
      type: ['ipv4_addr', 'inet_proto', 'inet_service'],
      flags: ['interval', 'timeout'],
      elem: [
        {
          elem: {
            val: { concat: [{ range: ['10.0.0.1', '10.0.0.9'] }, 'tcp', { range: [80, 90] }] },
            timeout: 60,
            counter: { packets: 7, bytes: 700 },
          },
        },
      ],
    })
    expect(set('flows6')?.set).toMatchObject({ elem: [{ concat: ['fd00::1', 443] }] })
    expect(set('targets')?.map).toMatchObject({
      type: ['inet_proto', 'inet_service'],
      elem: [[{ concat: ['tcp', 8080] }, { concat: ['10.0.0.1', 80] }]],
    })
    expect(set('verdicts')?.map).toMatchObject({
      elem: expect.arrayContaining([
        ['up0', { goto: { target: 'there' } }],
        ['up1', { drop: null }],
      ]) as unknown,
    })
    expect(set('marks')?.map).toMatchObject({ type: 'ipv4_addr', map: 'mark', elem: [['10.0.0.1', 7]] })
  })

  test('rules are printed as they were meant', () => {
    const addresses: SetShape = { name: 'addresses', key: [ipv4] }
    const reached: SetShape = { name: 'reached', key: [portType], data: [ipv4, portType] }
    const tcp = [meta('l4proto'), compare('==', TCP)]
    const ip = [meta('nfproto'), compare('==', Uint8Array.of(FAMILY.ipv4))]
    const source = payload('network', 12, 4)
    const hook = { kind: 'filter', hook: 'forward', priority: 0, policy: 'accept' } as const
    netlink.commit('make rules', [
      newSet(TABLE, addresses),
      newSet(TABLE, reached),
      newCounter(TABLE, 'named', { packets: 3, bytes: 30 }),
      newChain(TABLE, 'through', hook),
      newChain(TABLE, 'first', { kind: 'nat', hook: 'prerouting', priority: -100, policy: 'accept' }),
      newChain(TABLE, 'last', { kind: 'nat', hook: 'postrouting', priority: 100, policy: 'accept' }),
      newChain(TABLE, 'other'),
      ...[
        [meta('iifname'), compare('==', interfaceBytes('up0')), verdict({ jump: 'other' })],
        [...ip, source, lookup('addresses'), counter(), verdict('accept')],
        [...ip, source, lookupNot('addresses'), countInto('named'), verdict('drop')],
        [
          ...ip,
          source,
          masked(Uint8Array.of(255, 0, 0, 0)),
          compare('==', Uint8Array.of(10, 0, 0, 0)),
          verdict('return'),
        ],
        [...tcp, payload('transport', 2, 2), within(port(80), port(90)), rejectTcp()],
        [rejectProhibited()],
        [ct('state'), masked(u32(CT_STATE.new)), compare('!=', u32(0)), limitPerSecond(10), verdict('accept')],
        [
          ...tcp,
          payload('transport', 13, 1),
          masked(Uint8Array.of(6)),
          compare('==', Uint8Array.of(2)),
          ...clampSegment(),
        ],
        [
          extensionHeader(44, 2, 2),
          masked(Uint8Array.of(0xff, 0xf8)),
          compare('!=', Uint8Array.of(0, 0)),
          verdict('drop'),
        ],
        [immediate(u32(5)), setMark()],
      ].map((rule) => newRule(TABLE, 'through', rule, 'why')),
      newRule(TABLE, 'first', [
        fibDestinationType(),
        compare('==', u32(FIB_LOCAL)),
        ...tcp,
        immediate(port(8080)),
        redirect(0),
      ]),
      newRule(TABLE, 'first', [
        ...ip,
        ...tcp,
        payload('transport', 2, 2),
        lookup('reached', { into: 0 }),
        dnat(FAMILY.ipv4, 0, 1),
      ]),
      newRule(TABLE, 'last', [...ip, source, lookup('addresses'), masquerade()]),
    ])

    expect(linesOf('through')).toEqual(
      [
        'iifname "up0" jump other',
        'ip saddr @addresses counter packets 0 bytes 0 accept',
        'ip saddr != @addresses counter name "named" drop',
        'ip saddr 10.0.0.0/8 return',
        'tcp dport 80-90 reject with tcp reset',
        'reject with icmpx admin-prohibited',
        'ct state new limit rate 10/second accept',
        'tcp flags syn / syn,rst tcp option maxseg size set rt mtu',
        'frag frag-off != 0 drop',
        'meta mark set 0x00000005',
      ].map((line) => `${line} comment "why"`),
    )
    expect(linesOf('first')).toEqual([
      'fib daddr type local meta l4proto tcp redirect to :8080',
      'meta nfproto ipv4 dnat ip to tcp dport map @reached',
    ])
    expect(linesOf('last')).toEqual(['ip saddr @addresses masquerade'])
    expect(chains(netlink).find(({ name }) => name === 'through')).toMatchObject({
      table: TABLE,
      hook: 2,
      priority: 0,
      policy: 'accept',
    })
    expect(
      rules(netlink)
        .filter(({ chain }) => chain === 'last')
        .map(({ expressions }) => expressions.map(({ name }) => name)),
    ).toEqual([['meta', 'cmp', 'payload', 'lookup', 'masq']])
  })

  test('elements are read, with what is left of their time and what they counted', () => {
    const flows: SetShape = { name: 'flows', key: [ipv4, portType], timeout: true, counter: true }
    const key = (address: Uint8Array) => keyOf(flows.key, [address, port(80)])
    netlink.commit('make a set', [
      newSet(TABLE, flows),
      ...addElements(TABLE, flows, [
        { key: key(A), timeoutMs: 60_000, count: { packets: 2, bytes: 20 } },
        { key: key(B), timeoutMs: 30_000 },
      ]),
    ])

    const [found] = elementsNamed(netlink, TABLE, flows, [{ key: key(A) }])
    expect(found).toMatchObject({ key: Buffer.from(key(A)), count: { packets: 2, bytes: 20 } })
    expect(found?.expiresMs).toBeWithin(50_000, 60_001)
    expect(elements(netlink, TABLE, 'flows').length).toBe(2)
    expect(elementsNamed(netlink, TABLE, flows, [{ key: keyOf(flows.key, [A, port(81)]) }])).toEqual([])

    netlink.commit('take one away', deleteElements(TABLE, flows, [{ key: key(A) }]))

    expect(elements(netlink, TABLE, 'flows').map((one) => one.key)).toEqual([Buffer.from(key(B))])
    expect(() => netlink.commit('again', deleteElements(TABLE, flows, [{ key: key(A) }]))).toThrow('ENOENT')
  })

  test('lists of any length are cut to what a message holds', () => {
    const many: SetShape = { name: 'many', key: [ipv6, ipv6, protocol, portType], interval: true, timeout: true }
    const list = Array.from({ length: 5000 }, (_, index) => {
      const address = Buffer.alloc(16, 0xfd)
      address.writeUInt32BE(index, 12)
      return { key: keyOf(many.key, [address, address, TCP, port(80)]), timeoutMs: 60_000 }
    })
    const hashed: SetShape = { ...many, name: 'hashed', interval: false }

    netlink.commit('add many', [newSet(TABLE, hashed), ...addElements(TABLE, hashed, list)])

    expect(elements(netlink, TABLE, 'hashed').length).toBe(5000)
    expect(addElements(TABLE, many, list).length).toBeGreaterThan(5)
    netlink.commit('remove many', deleteElements(TABLE, hashed, list))
    expect(elements(netlink, TABLE, 'hashed')).toEqual([])
  })

  test('named counters begin with what they are given, and are read', () => {
    netlink.commit('make counters', [newCounter(TABLE, 'one', { packets: 1, bytes: 10 }), newCounter(TABLE, 'two')])

    expect(Object.fromEntries(counters(netlink, TABLE))).toEqual({
      one: { packets: 1, bytes: 10 },
      two: { packets: 0, bytes: 0 },
    })
    expect(counterNamed(netlink, TABLE, 'one')).toEqual({ packets: 1, bytes: 10 })
    expect(counterNamed(netlink, TABLE, 'three')).toBeUndefined()
  })

  test('all that was made can be taken away by itself', () => {
    const plain: SetShape = { name: 'plain', key: [ipv4] }
    netlink.commit('make', [
      newSet(TABLE, plain),
      newCounter(TABLE, 'named'),
      newChain(TABLE, 'chain'),
      newRule(TABLE, 'chain', [countInto('named'), verdict('accept')]),
    ])

    netlink.commit('unmake', [
      deleteRules(TABLE, 'chain'),
      deleteChain(TABLE, 'chain'),
      deleteCounter(TABLE, 'named'),
      deleteSet(TABLE, 'plain'),
    ])

    expect(
      listed()
        .filter((one) => !('metainfo' in one))
        .map((one) => Object.keys(one)),
    ).toEqual([['table']])
  })

  test.skipIf(!kernelAtLeast(6, 9))('a table with an owner is nobody else’s, until that goes', () => {
    const owned = { family: FAMILY.netdev, name: 'owned' }
    {
      using owner = Netlink.open(PROTOCOL.netfilter, netns.fd)
      owner.commit('make a table', [newTable(owned, TABLE_OWNED | TABLE_PERSISTS)])
      expect(tables(netlink).find(({ name }) => name === 'owned')?.flags).toBe(TABLE_OWNED | TABLE_PERSISTS)
      expect(() => netlink.commit('take it', [deleteTable(owned)])).toThrow('EPERM')
    }

    netlink.commit('take it', [deleteTable(owned)])

    expect(tables(netlink).map(({ name }) => name)).toEqual(['tried'])
  })

  test('a name that no link can have is refused before the kernel is asked', () => {
    expect(() => interfaceBytes('sixteen-characte')).toThrow(RangeError)
    expect(() => interfaceBytes('')).toThrow(RangeError)
    expect(() =>
      newChain({ family: FAMILY.netdev, name: 'x' }, 'x', {
        kind: 'filter',
        hook: 'ingress',
        priority: 0,
        policy: 'drop',
        device: 'sixteen-characte',
      }),
    ).toThrow(RangeError)
  })
})
