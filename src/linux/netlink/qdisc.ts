import { type Message, text, u32, u64 } from './message.ts'

/*
 * How a link sends (tc(8), linux/pkt_sched.h, linux/rtnetlink.h): what a tap sends, its guest receives.
 */

const RTM = { newQdisc: 36, deleteQdisc: 37 } as const
const FLAG = { replace: 0x100, create: 0x400 } as const
const TCA = { kind: 1, options: 2 } as const
const TBF = { parameters: 1, rate64: 4, burst: 6 } as const
const ROOT = 0xffff_ffff
/** `1:`, as tc(8) writes it. */
const HANDLE = 0x1_0000
const ETHERNET = 1
const U32_MAX = 0xffff_ffff
/** How much waits for its turn, in parts of a second; what comes beyond it is dropped, which TCP slows down for. */
const WAITS_PER_S = 20

const head = (link: number, handle: number): Uint8Array => {
  const bytes = Buffer.alloc(20)
  bytes.writeInt32LE(link, 4)
  bytes.writeUInt32LE(handle, 8)
  bytes.writeUInt32LE(ROOT, 12)
  return bytes
}

/** Lets a link send so many bytes a second, and `burst` bytes at once after a rest; in the place of what it had. */
export const newTokenBucket = (link: number, bytesPerS: number, burst: number): Message => {
  const parameters = Buffer.alloc(36) // struct tc_tbf_qopt: rate, peak rate, limit, buffer, mtu
  parameters[1] = ETHERNET
  parameters.writeUInt32LE(Math.min(bytesPerS, U32_MAX), 8)
  parameters.writeUInt32LE(Math.min(Math.ceil(bytesPerS / WAITS_PER_S) + burst, U32_MAX), 24)
  return {
    type: RTM.newQdisc,
    flags: FLAG.create | FLAG.replace,
    head: head(link, HANDLE),
    attributes: [
      [TCA.kind, text('tbf')],
      [
        TCA.options,
        [
          [TBF.parameters, parameters],
          ...(bytesPerS > U32_MAX ? [[TBF.rate64, u64(bytesPerS)] as const] : []),
          [TBF.burst, u32(burst)],
        ],
      ],
    ],
  }
}

/** Lets a link send as fast as it can again. @throws ENOENT, EINVAL: it has none */
export const deleteTokenBucket = (link: number): Message => ({ type: RTM.deleteQdisc, head: head(link, HANDLE) })
