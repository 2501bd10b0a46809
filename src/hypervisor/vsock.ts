import { connect, type Socket } from 'node:net'
import { agentUnavailable } from './errors.ts'

/** An answer is `OK <port>\n`; anything longer is no answer. */
const LINE_MAX = 32

/**
 * Opens a stream to a vsock port of a guest over its Unix socket, in Firecracker's dialect: `CONNECT <port>\n`, `OK
 * <n>\n`. The first bytes of the conversation may be written at once; they wait in the socket.
 *
 * @throws `agent_unavailable`; the signal's reason
 */
export const connectVsock = (path: string, port: number, signal: AbortSignal): Promise<Socket> =>
  new Promise((resolve, reject) => {
    const socket = connect({ path, allowHalfOpen: true })
    let head = Buffer.alloc(0)
    const done = (error?: Error) => {
      signal.removeEventListener('abort', abort)
      socket.off('readable', read)
      socket.off('error', failed)
      socket.off('end', ended)
      socket.off('close', ended)
      if (!error) {
        resolve(socket)
        return
      }
      socket.on('error', () => undefined)
      socket.destroy()
      reject(error)
    }
    const abort = () => {
      done(signal.reason as Error)
    }
    const failed = (error: Error) => {
      done(agentUnavailable({ reason: error.message }, error))
    }
    const ended = () => {
      done(agentUnavailable({ reason: `nobody listens on its vsock port ${port}` }))
    }
    const read = () => {
      for (let chunk = socket.read() as Buffer | null; chunk !== null; chunk = socket.read() as Buffer | null) {
        head = Buffer.concat([head, chunk])
        const end = head.indexOf(10)
        if (end >= 0) {
          if (!/^OK \d+$/.test(head.subarray(0, end).toString('latin1'))) {
            failed(new Error('its vsock answers nonsense'))
            return
          }
          const rest = head.subarray(end + 1)
          done()
          if (rest.byteLength > 0) socket.unshift(rest)
          return
        }
        if (head.byteLength > LINE_MAX) {
          failed(new Error('its vsock answers nonsense'))
          return
        }
      }
    }
    if (signal.aborted) {
      abort()
      return
    }
    signal.addEventListener('abort', abort, { once: true })
    socket.on('readable', read)
    socket.once('error', failed)
    socket.once('end', ended)
    socket.once('close', ended)
    socket.write(`CONNECT ${port}\n`)
  })
