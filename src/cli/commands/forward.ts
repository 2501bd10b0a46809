import { Type } from '@sinclair/typebox'
import { createServer, type Server, type Socket } from 'node:net'
import type { Client } from '../../client/client.ts'
import { fault } from '../../lib/fault.ts'
import { asFault } from '../fault-text.ts'
import { command, type Context } from '../command.ts'
import { parseForward, sayLocal, sayRemote, type Forward, type Local, type Remote } from '../forward-spec.ts'

const portTaken = fault('address_taken', 'conflict', { address: Type.String(), reason: Type.String() },
  (d) => `Cannot listen at ${d.address}: ${d.reason}`, 'Port 0 takes a free one')

const listen = (server: Server, local: Local): Promise<Local> => new Promise((resolve, reject) => {
  server.once('error', (error: NodeJS.ErrnoException) => {
    const reason = error.code === 'EADDRINUSE' ? 'somebody else does' : error.code === 'EACCES' ? 'this user may not' : error.message
    reject(portTaken({ address: sayLocal(local), reason }, error))
  })
  server.listen('unix' in local ? { path: local.unix } : { host: local.host, port: local.port }, () => {
    const address = server.address()
    resolve('unix' in local || typeof address !== 'object' || address === null ? local : { host: local.host, port: address.port })
  })
})

/** One connection: bytes both ways, each with its own end; whoever is slow stops the other. */
const join = async (client: Client, name: string, remote: Remote, socket: Socket): Promise<void> => {
  const wire = await client.raw('vm.forward', { params: { name }, query: remote })
  socket.once('close', () => { wire.close() })
  const up = async () => {
    for await (const bytes of socket) await wire.send(bytes as Uint8Array)
    await wire.end()
  }
  const down = async () => {
    for await (const bytes of wire.bytes()) {
      if (!socket.write(bytes)) await new Promise<void>((resolve) => { socket.once('drain', resolve).once('close', resolve) })
      if (socket.destroyed) return
    }
    socket.end()
  }
  try { await Promise.all([up(), down()]) } finally { socket.destroy(); wire.close() }
}

const open = async (context: Context, client: Client, name: string, forward: Forward): Promise<{ readonly local: string; readonly remote: string }> => {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: false }, (socket) => {
    socket.on('error', () => undefined) // its stream ends, which is all that we want to know
    join(client, name, forward.remote, socket).catch((error: unknown) => {
      socket.destroy()
      if ((error as { code?: unknown }).code !== 'ERR_STREAM_PREMATURE_CLOSE') context.out.warn(asFault(error).message)
    })
  })
  return { local: sayLocal(await listen(server, forward.local)), remote: sayRemote(forward.remote) }
}

export default command({
  usage: 'NAME [[ADDRESS:]PORT:]PORT…',
  detail: `Listens on this host (the loopback, unless an address is said) and connects into the vm: 8080:80, 0:80 (a free port), 80, /tmp/x.sock:80, 5432:/run/db.sock.
Prints where it listens, and serves until it is ended.`,
  flags: {},
  args: { min: 2, max: 64, nouns: ['vm', 'none'] },
  async run(context, { args }) {
    const [name = '', ...specs] = args, forwards = specs.map(parseForward)
    const client = await context.client()
    const vm = await client.call('vm.get', { params: { name } })
    const opened: { readonly local: string; readonly remote: string }[] = []
    for (const forward of forwards) opened.push(await open(context, client, vm.uid, forward))
    await context.out.show(opened, {
      table: () => opened.map((one) => `${one.local} -> ${vm.name}:${one.remote}\n`).join(''), name: () => opened.map((one) => one.local) })
    return new Promise<never>(() => undefined)
  },
})
