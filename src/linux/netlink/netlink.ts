import { write } from 'node:fs'
import { promisify } from 'node:util'
import { checked, hasCode, SyscallError } from '../errno.ts'
import { closeFd } from '../fd.ts'
import { host } from '../host-library.ts'
import { bindSocket, setOption, socketIn } from '../inet.ts'
import { attributesOf, decode, encode, FLAG, type Message, type Received, textOf, TYPE, u32 } from './message.ts'

/** The protocols of a netlink socket, by linux/netlink.h. */
export const PROTOCOL = { route: 0, netfilter: 12 } as const
const AF_NETLINK = 16
const SOCK_RAW = 3
const SOL_NETLINK = 270
const OPTION = { addMembership: 1, capAck: 10, extAck: 11, strictCheck: 12 } as const
const SOL_SOCKET = 1
const SO_SNDBUFFORCE = 32
const SO_RCVBUFFORCE = 33
/** What a socket sends at once without being told to, at least (net.core.wmem_default). */
const SEND_BYTES = 200 * 1024
/** Room for acknowledgements and dumps, bytes; the kernel keeps one byte of book for each. */
const RECEIVE_BYTES = 4 * 2 ** 20
/** A dump's datagram has at most 32 KiB (net/netlink/af_netlink.c). */
const DATAGRAM_BYTES = 64 * 1024
/** NLMSGERR_ATTR_MSG: the kernel's own words. */
const ATTR_MESSAGE = 1
const FLAG_ACK_TLVS = 0x200
/** What the kernel marks a list with that changed while it was read: NLM_F_DUMP_INTR. */
const FLAG_INTERRUPTED = 0x10
/** How often a list is read that always changes. */
const DUMPS_MAX = 10
const EPROTO = 71
/**
 * The messages round a batch, by linux/netfilter/nfnetlink.h; the subsystem of nf_tables is 10, in the network's order.
 */
const BATCH = { begin: 16, end: 17 } as const
const NFTABLES = Uint8Array.of(0, 0, 0, 10)

const writeAside = promisify(write)

/** What the kernel refused, with its own words where it has some, and the place of the message in what was sent. */
export class NetlinkError extends SyscallError {
  override name = 'NetlinkError'
  readonly index: number
  readonly said: string | undefined

  constructor(errno: number, doing: string, index: number, said: string | undefined) {
    super(errno, doing)
    this.index = index
    this.said = said
    if (said !== undefined) this.message = `${this.message} (${said})`
  }
}

/**
 * A netlink socket (netlink(7)), in one network namespace for ever. What is sent has been done when `send` returns, and
 * its acknowledgements are there to be read; a change that waits in the kernel goes by `applyAside`, on a thread of
 * Bun's pool.
 */
export class Netlink implements Disposable {
  readonly #fd: number
  #sequence = 1
  #sendBytes = SEND_BYTES

  private constructor(fd: number) {
    this.#fd = fd
  }

  /** @throws EPERM: may not enter the namespace; EPROTONOSUPPORT: this kernel has no such family */
  static open(protocol: number, netns?: number): Netlink {
    const fd = socketIn(netns, AF_NETLINK, SOCK_RAW, protocol)
    try {
      for (const option of [OPTION.capAck, OPTION.extAck]) setOption(fd, SOL_NETLINK, option, u32(1))
      try {
        setOption(fd, SOL_SOCKET, SO_RCVBUFFORCE, u32(RECEIVE_BYTES))
      } catch (error) {
        if (!hasCode(error, 'EPERM')) throw error // who may only look needs no large batches
      }
      bindSocket(fd, Buffer.from([AF_NETLINK, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
      return new Netlink(fd)
    } catch (error) {
      closeFd(fd)
      throw error
    }
  }

  get fd(): number {
    return this.#fd
  }

  [Symbol.dispose](): void {
    closeFd(this.#fd)
  }

  /** Hears what others change: messages of a multicast group arrive with `receive`. */
  join(group: number): void {
    setOption(this.#fd, SOL_NETLINK, OPTION.addMembership, u32(group))
  }

  /**
   * Makes changes, in their order; one that is refused does not keep those behind it from being made.
   *
   * @throws NetlinkError: the first that was refused
   */
  apply(doing: string, messages: readonly Message[]): void {
    this.#settle(doing, messages.length, this.#send(messages.map(withAck)))
  }

  /** The same for changes that the kernel takes its time for; others may use the socket again when it has resolved. */
  async applyAside(doing: string, messages: readonly Message[]): Promise<void> {
    const first = this.#number(messages.length)
    const bytes = encode(messages.map(withAck), first)
    await writeAside(this.#fd, bytes)
    this.#settle(doing, messages.length, first)
  }

  /**
   * Makes changes of nf_tables of which all or none are made (linux/netfilter/nfnetlink.h). The last alone is
   * acknowledged: one acknowledgement a message would fill the socket.
   *
   * @throws NetlinkError: why nothing was changed
   */
  commit(doing: string, messages: readonly Message[]): void {
    const [last] = messages.slice(-1)
    if (!last) return
    const batch = [{ type: BATCH.begin, head: NFTABLES }, ...messages.slice(0, -1), withAck(last)]
    const first = this.#send([...batch, { type: BATCH.end, head: NFTABLES }]) + 1
    const answers = this.#pending().filter(({ type, sequence }) => type === TYPE.error && sequence >= first - 1)
    for (const one of answers) {
      const error = failureOf(one)
      if (error) throw new NetlinkError(error.errno, doing, one.sequence - first, error.said)
    }
    if (answers.length === 0) throw new NetlinkError(EPROTO, doing, 0, 'no acknowledgement')
  }

  /** Asks for a list. @throws NetlinkError */
  dump(doing: string, message: Message): Received[] {
    const ask = { ...message, flags: (message.flags ?? 0) | FLAG.dump }
    for (let attempt = 1; ; attempt++) {
      const found = this.#listed(doing, this.#send([ask]))
      // A list that was changed while it was read may lack what is there: it is read anew.
      if (attempt === DUMPS_MAX || !found.some(({ flags }) => (flags & FLAG_INTERRUPTED) !== 0)) return found
    }
  }

  #listed(doing: string, first: number): Received[] {
    const found: Received[] = []
    for (;;) {
      const answers = this.#pending().filter(({ sequence }) => sequence === first)
      if (answers.length === 0) throw new NetlinkError(EPROTO, doing, 0, 'the list does not end')
      for (const one of answers) {
        if (one.type === TYPE.done) return found
        const error = failureOf(one)
        if (error) throw new NetlinkError(error.errno, doing, 0, error.said)
        found.push(one)
      }
    }
  }

  /**
   * The same for a list that the kernel takes its time for; others may use the socket again when it has resolved. Only
   * what it finds is read on this thread.
   */
  async dumpAside(doing: string, message: Message): Promise<Received[]> {
    const first = this.#number(1)
    await writeAside(this.#fd, encode([{ ...message, flags: (message.flags ?? 0) | FLAG.dump }], first))
    return this.#listed(doing, first)
  }

  /** Asks for one thing; undefined where the kernel has no such thing. @throws NetlinkError */
  get(doing: string, message: Message): Received | undefined {
    return this.getAll(doing, message)?.[0]
  }

  /** The same where the answer is several messages. @throws NetlinkError */
  getAll(doing: string, message: Message): Received[] | undefined {
    const first = this.#send([message])
    const found: Received[] = []
    for (const one of this.#pending()) {
      if (one.sequence !== first) continue
      const error = failureOf(one)
      if (error?.errno === 2 || error?.errno === 19) return undefined // ENOENT, ENODEV
      if (error) throw new NetlinkError(error.errno, doing, 0, error.said)
      if (one.type !== TYPE.error) found.push(one)
    }
    return found
  }

  /** Reads what is there, of one datagram. @throws EAGAIN: nothing; ENOBUFS: some was lost */
  receive(): Received[] {
    const room = Buffer.allocUnsafe(DATAGRAM_BYTES)
    const length = checked(host().aerie_receive(this.#fd, room, room.length), 'recv')
    return decode(room.subarray(0, Math.min(length, room.length)))
  }

  #number(count: number): number {
    const first = this.#sequence
    this.#sequence += count
    if (this.#sequence > 0x7fff_ffff) this.#sequence = 1
    return first
  }

  #send(messages: readonly Message[]): number {
    const first = this.#number(messages.length)
    const bytes = encode(messages, first)
    if (bytes.length > this.#sendBytes) {
      setOption(this.#fd, SOL_SOCKET, SO_SNDBUFFORCE, u32(bytes.length))
      this.#sendBytes = bytes.length
    }
    checked(host().aerie_send(this.#fd, bytes, bytes.length), 'send')
    return first
  }

  /** Reads the answers to the messages from `first` on. */
  #settle(doing: string, count: number, first: number): void {
    const answers = this.#pending().filter(
      ({ type, sequence }) => type === TYPE.error && sequence >= first && sequence < first + count,
    )
    for (const one of answers) {
      const error = failureOf(one)
      if (error) throw new NetlinkError(error.errno, doing, one.sequence - first, error.said)
    }
    if (answers.length < count) throw new NetlinkError(EPROTO, doing, answers.length, 'no acknowledgement')
  }

  /** Reads all that is there: what a message led to is, when it has been sent. */
  #pending(): Received[] {
    const found: Received[] = []
    for (;;) {
      try {
        found.push(...this.receive())
      } catch (error) {
        if (hasCode(error, 'EAGAIN')) return found
        throw error
      }
    }
  }
}

const withAck = (message: Message): Message => ({ ...message, flags: (message.flags ?? 0) | FLAG.ack })

/** The errno of an answer and the kernel's words; undefined where it is none, or says that all is well. */
const failureOf = ({
  type,
  flags,
  body,
}: Received): { readonly errno: number; readonly said: string | undefined } | undefined => {
  if (type !== TYPE.error) return undefined
  const errno = -body.readInt32LE(0)
  if (errno === 0) return undefined
  // With CAP_ACK only the header of what was refused is given back: 4 + 16 bytes, then attributes.
  const words = flags & FLAG_ACK_TLVS ? attributesOf(body.subarray(20)).get(ATTR_MESSAGE) : undefined
  return { errno, said: words && textOf(words) }
}
