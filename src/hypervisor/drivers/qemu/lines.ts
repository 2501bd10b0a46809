import type { Socket } from 'node:net'
import { Allowance, type Rate } from '../../../lib/allowance.ts'
import { share } from '../../../lib/turn.ts'
import { sleep } from '../../../lib/promise.ts'

/** What one line may be, and how many of them. A line costs 1 and another 1 for each KiB. */
export interface LineLimits {
  /** The longest line, in UTF-16 units. */
  readonly lengthMax: number
  readonly rate: Rate
}

const cost = (line: string): number => 1 + line.length / 1024

/**
 * Reads a socket's lines to its end. Whoever says more than the rate allows is read more slowly, and what it says
 * meanwhile waits in its own memory; the event loop is shared with everybody else.
 *
 * @throws Error: a line is longer than it may be; what `heard` throws. The socket is destroyed then.
 */
export const eachLine = async (socket: Socket, limits: LineLimits, heard: (line: string) => void): Promise<void> => {
  const allowance = new Allowance(limits.rate)
  let rest = ''
  socket.setEncoding('utf8')
  for await (const chunk of socket) {
    const lines = (rest + String(chunk)).split('\n')
    rest = lines.pop() ?? ''
    if ([rest, ...lines].some((line) => line.length > limits.lengthMax)) throw new Error('QEMU says lines without end')
    for (const line of lines) {
      heard(line)
      const wait = allowance.reserve(cost(line))
      if (wait > 0) await sleep(wait)
      const turn = share()
      if (turn) await turn
    }
  }
}
