import { Type } from '@sinclair/typebox'
import { constants } from 'node:os'
import { createServer, type Server, type Socket } from 'node:net'
import type { Client } from '../../../client/client.ts'
import { fault } from '../../../lib/fault.ts'
import { faultOrDefect } from '../../fault-text.ts'
import { command, type Context } from '../../command.ts'
import { parseForward, sayLocal, sayRemote, type Forward, type Local, type Remote } from './forward-spec.ts'

const portTaken = fault(
  'address_taken',
  'conflict',
  { address: Type.String(), reason: Type.String() },
  (d) => `Cannot listen at ${d.address}: ${d.reason}`,
  'Port 0 takes a free one',
)

const listen = (server: Server, local: Local): Promise<Local> =>
  new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const reason =
        error.code === 'EADDRINUSE'
          ? 'somebody else does'
          : error.code === 'EACCES'
            ? 'this user may not'
            : error.message
      reject(portTaken({ address: sayLocal(local), reason }, error))
    })
    server.listen('unix' in local ? { path: local.unix } : { host: local.host, port: local.port }, () => {
      const address = server.address()
      resolve(
        'unix' in local || typeof address !== 'object' || address === null
          ? local
          : { host: local.host, port: address.port },
      )
    })
  })

/** Joins one connection to the guest: bytes both ways, each with its own end; whoever is slow stops the other. */
const join = async (client: Client, name: string, remote: Remote, socket: Socket): Promise<void> => {
  const wire = await client.raw('vm.forward', { params: { name }, query: remote })
  socket.once('close', () => {
    wire.close()
  })
  // By hand: an iterator over a socket takes the socket down with the end of one direction.
  const up = () =>
    new Promise<void>((resolve, reject) => {
      socket.on('data', (bytes: Uint8Array) => {
        socket.pause()
        wire.send(bytes).then(() => {
          socket.resume()
        }, reject)
      })
      socket
        .once('end', () => {
          wire.end().then(resolve, reject)
        })
        .once('close', () => {
          resolve()
        })
    })
  const down = async () => {
    for await (const bytes of wire.bytes()) {
      if (!socket.write(bytes))
        await new Promise<void>((resolve) => {
          socket.once('drain', resolve).once('close', resolve)
        })
      if (socket.destroyed) return
    }
    socket.end()
  }
  try {
    await Promise.all([up(), down()])
  } finally {
    socket.destroy()
    wire.close()
  }
}

interface Opened {
  readonly server: Server
  readonly local: string
  readonly remote: string
}

const open = async (context: Context, client: Client, name: string, forward: Forward): Promise<Opened> => {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: false }, (socket) => {
    socket.on('error', () => undefined) // its stream ends, which is all that we want to know
    join(client, name, forward.remote, socket).catch((error: unknown) => {
      socket.destroy()
      context.out.warn(faultOrDefect(error).message)
    })
  })
  return { server, local: sayLocal(await listen(server, forward.local)), remote: sayRemote(forward.remote) }
}

export const forward = command({
  usage: 'NAME [[ADDRESS:]PORT:]PORT…',
  detail: `Listens on this host (the loopback, unless an address is said) and connects into the vm: 8080:80, 0:80 (a free port), 80, /tmp/x.sock:80, 5432:/run/db.sock.
Prints where it listens, and serves until it is ended.`,
  flags: {},
  args: { min: 2, max: 64, nouns: ['vm', 'none'] },
  async run(context, { args }) {
    const [name = '', ...specs] = args
    const forwards = specs.map(parseForward)
    const client = await context.client()
    const vm = await client.call('vm.get', { params: { name } })
    const opened: Opened[] = []
    for (const forward of forwards) opened.push(await open(context, client, vm.uid, forward))
    const ended = new Promise<number>((resolve) => {
      for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
        process.on(name, () => {
          resolve(128 + constants.signals[name])
        })
    })
    await context.out.show(
      opened.map(({ local, remote }) => ({ local, remote })),
      {
        table: () => opened.map((one) => `${one.local} -> ${vm.name}:${one.remote}\n`).join(''),
        name: () => opened.map((one) => one.local),
      },
    )
    try {
      return await ended
    } finally {
      for (const { server } of opened) server.close()
    } // a Unix socket's file goes with its server
  },
})
