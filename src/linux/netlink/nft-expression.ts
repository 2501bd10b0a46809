import { type Attribute, text, u8, u16be, u32be, u64be } from './message.ts'

/*
 * What the rules of nf_tables are made of (linux/netfilter/nf_tables.h): each expression loads something into a
 * register, compares one, or decides. Numbers in the attributes are in the network's order; what `meta` and `ct` load
 * is in the host's.
 *
 * Registers are named by their number of 4 bytes: 0 to 15, of which an expression takes as many as its value needs.
 */

/** One expression of a rule. */
export type Expression = Attribute

const ELEMENT = 1
const register = (number: number): Uint8Array => u32be(8 + number)
const VERDICT_REGISTER = u32be(0)

const expression = (name: string, attributes: readonly Attribute[]): Expression => [
  ELEMENT,
  [
    [1, text(name)],
    [2, attributes],
  ],
]

/** The bare form, for a set whose elements carry an expression. */
export const bare = ([, value]: Expression): readonly Attribute[] => value as readonly Attribute[]

/** A value as an attribute holds it. */
export const dataValue = (value: Uint8Array): readonly Attribute[] => [[1, value]]

export const VERDICT = { drop: 0, accept: 1, jump: -3, goto: -4, return: -5 } as const

/** What happens to a packet; `jump` and `goto` name a chain. */
export type Verdict = 'accept' | 'drop' | 'return' | { readonly jump: string } | { readonly goto: string }

/** A verdict as an attribute holds it. */
export const dataVerdict = (verdict: Verdict): readonly Attribute[] => {
  if (typeof verdict === 'string') return [[2, [[1, u32be(VERDICT[verdict])]]]]
  const [code, chain] = 'jump' in verdict ? [VERDICT.jump, verdict.jump] : [VERDICT.goto, verdict.goto]
  return [
    [
      2,
      [
        [1, u32be(code)],
        [2, text(chain)],
      ],
    ],
  ]
}

const META = { mark: 3, iifname: 6, oifname: 7, nfproto: 15, l4proto: 16 } as const
const CT = { direction: 1, state: 0, status: 2 } as const
const BASE = { link: 0, network: 1, transport: 2 } as const
const COMPARISON = { '==': 0, '!=': 1, '<': 2, '<=': 3, '>': 4, '>=': 5 } as const

/** Bits of `ct state` and `ct status`. */
export const CT_STATE = { invalid: 1, established: 2, related: 4, new: 8 } as const
export const CT_STATUS = { snat: 16, dnat: 32 } as const
/** Types of addresses of a `fib`. */
export const FIB_LOCAL = 2

/** Loads a fact of the packet (its interface, its protocol) into a register. */
export const meta = (key: keyof typeof META, into = 0): Expression =>
  expression('meta', [
    [1, register(into)],
    [2, u32be(META[key])],
  ])

/** Loads a fact of the packet's connection into a register. */
export const ct = (key: keyof typeof CT, into = 0): Expression =>
  expression('ct', [
    [1, register(into)],
    [2, u32be(CT[key])],
  ])

/** Loads `length` bytes of the packet into a register, from `offset` bytes behind a header. */
export const payload = (base: keyof typeof BASE, offset: number, length: number, into = 0): Expression =>
  expression('payload', [
    [1, register(into)],
    [2, u32be(BASE[base])],
    [3, u32be(offset)],
    [4, u32be(length)],
  ])

/** Ends the rule unless a register compares so with a value. */
export const compare = (operator: keyof typeof COMPARISON, value: Uint8Array, of = 0): Expression =>
  expression('cmp', [
    [1, register(of)],
    [2, u32be(COMPARISON[operator])],
    [3, dataValue(value)],
  ])

/** Tells whether a register is one of a range, both ends in it. */
export const within = (first: Uint8Array, last: Uint8Array, of = 0): Expression =>
  expression('range', [
    [1, register(of)],
    [2, u32be(0)],
    [3, dataValue(first)],
    [4, dataValue(last)],
  ])

/** Keeps the bits of a mask. */
export const masked = (mask: Uint8Array, of = 0): Expression =>
  expression('bitwise', [
    [1, register(of)],
    [2, register(of)],
    [3, u32be(mask.length)],
    [4, dataValue(mask)],
    [5, dataValue(new Uint8Array(mask.length))],
  ])

/** The kind of the address that a packet goes to, as the routes of this host have it. */
export const fibDestinationType = (into = 0): Expression =>
  expression('fib', [
    [1, register(into)],
    [2, u32be(3)],
    [3, u32be(2)],
  ])

/** Looks a register up in a set, in a map with `into`, in a verdict map with `into: 'verdict'`. */
export const lookup = (set: string, options: { readonly of?: number; readonly into?: number | 'verdict' } = {}) =>
  expression('lookup', [
    [1, text(set)],
    [2, register(options.of ?? 0)],
    ...(options.into === undefined
      ? []
      : [[3, options.into === 'verdict' ? VERDICT_REGISTER : register(options.into)] as const]),
  ])

/** The same, true where it is not in the set. */
export const lookupNot = (set: string, of = 0): Expression =>
  expression('lookup', [
    [1, text(set)],
    [2, register(of)],
    [5, u32be(1)],
  ])

/** Decides what becomes of the packet. */
export const verdict = (what: Verdict): Expression =>
  expression('immediate', [
    [1, VERDICT_REGISTER],
    [2, dataVerdict(what)],
  ])

/** Puts a value into a register. */
export const immediate = (value: Uint8Array, into = 0): Expression =>
  expression('immediate', [
    [1, register(into)],
    [2, dataValue(value)],
  ])

/** Rewrites where a packet goes to: the address in one register, the port in another. */
export const dnat = (family: number, address: number, port: number): Expression =>
  expression('nat', [
    [1, u32be(1)],
    [2, u32be(family)],
    [3, register(address)],
    [5, register(port)],
  ])

/** Rewrites where a packet comes from: to the address of the interface that it leaves by. */
export const masquerade = (): Expression => expression('masq', [])

/** Rewrites where a packet goes to: to this host, at the port in a register. */
export const redirect = (port: number): Expression => expression('redir', [[1, register(port)]])

/** A counter of the rule's own. */
export const counter = (
  from: { readonly packets: number; readonly bytes: number } = { packets: 0, bytes: 0 },
): Expression =>
  expression('counter', [
    [1, u64be(from.bytes)],
    [2, u64be(from.packets)],
  ])

/** Counts into a named counter. */
export const countInto = (name: string): Expression =>
  expression('objref', [
    [1, u32be(1)],
    [2, text(name)],
  ])

/** Answers a TCP packet with a reset. */
export const rejectTcp = (): Expression =>
  expression('reject', [
    [1, u32be(1)],
    [2, u8(0)],
  ])

/** Answers with "administratively prohibited", of ICMP or ICMPv6. */
export const rejectProhibited = (): Expression =>
  expression('reject', [
    [1, u32be(2)],
    [2, u8(3)],
  ])

/** True for so many packets a second. */
export const limitPerSecond = (packets: number, burst = 5): Expression =>
  expression('limit', [
    [1, u64be(packets)],
    [2, u64be(1)],
    [3, u32be(burst)],
    [4, u32be(0)],
    [5, u32be(0)],
  ])

/** True for what comes beyond so many bytes a second; after a rest as many go at once as in a second. */
export const beyondBytesPerSecond = (bytes: number, burst: number): Expression =>
  expression('limit', [
    [1, u64be(bytes)],
    [2, u64be(1)],
    [3, u32be(burst)],
    [4, u32be(1)],
    [5, u32be(1)],
  ])

/** Marks a packet with the number in a register. */
export const setMark = (of = 0): Expression =>
  expression('meta', [
    [2, u32be(META.mark)],
    [3, register(of)],
  ])

/** Loads a field of an IPv6 extension header; false where there is none. */
export const extensionHeader = (header: number, offset: number, length: number, into = 0): Expression =>
  expression('exthdr', [
    [1, register(into)],
    [2, u8(header)],
    [3, u32be(offset)],
    [4, u32be(length)],
  ])

const TCP_OPTION = 1
const OPTION_MSS = 2

/** Makes the largest segment that a TCP packet offers no larger than the route lets through. */
export const clampSegment = (): Expression[] => [
  expression('rt', [
    [1, register(0)],
    [2, u32be(3)],
  ]),
  // The route says it in the host's order, the option wants the network's.
  expression('byteorder', [
    [1, register(0)],
    [2, register(0)],
    [3, u32be(1)],
    [4, u32be(2)],
    [5, u32be(2)],
  ]),
  expression('exthdr', [
    [2, u8(OPTION_MSS)],
    [3, u32be(2)],
    [4, u32be(2)],
    [6, u32be(TCP_OPTION)],
    [7, register(0)],
  ]),
]

/** A port in the order that a packet has it. */
export const port = u16be
