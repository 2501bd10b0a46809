import { describe, expect, test } from 'bun:test'
import { connect } from '../../src/client/client.ts'
import { parseEvents, type ServerEvent } from '../../src/client/sse.ts'
import { Fault } from '../../src/lib/fault.ts'
import { FakeDaemon } from './daemon.ts'

const streamOf = (...parts: string[]): ReadableStream<Uint8Array> =>
  new ReadableStream({
    start(controller) {
      for (const part of parts) controller.enqueue(Buffer.from(part, 'latin1'))
      controller.close()
    },
  })
const read = async (events: AsyncIterable<ServerEvent>): Promise<ServerEvent[]> => {
  const all: ServerEvent[] = []
  for await (const event of events) all.push(event)
  return all
}
const sse = (text: string) => new Response(text, { headers: { 'content-type': 'text/event-stream' } })

describe('the format', () => {
  test('has ids that stay, names, several lines of data, comments and all ends of lines', async () => {
    expect(
      await read(
        parseEvents(streamOf(': hello\n\nid: 1\nevent: log\ndata: a\ndata:b\r\n\r\ndata\nunknown: x\n\ndata: cut')),
      ),
    ).toEqual([
      { id: '1', event: 'log', data: 'a\nb' },
      { id: '1', event: 'message', data: '' },
    ])
  })

  test('may be cut anywhere, also in a letter', async () => {
    const whole = Buffer.from('id: 7\ndata: smørrebrød ☃\n\n').toString('latin1')

    for (let at = 1; at < whole.length; at++) {
      expect(await read(parseEvents(streamOf(whole.slice(0, at), whole.slice(at))))).toEqual([
        { id: '7', event: 'message', data: 'smørrebrød ☃' },
      ])
    }
  })

  test('has an end to the size of an event', async () => {
    const endless = new ReadableStream<Uint8Array>({
      pull(controller) {
        controller.enqueue(Buffer.alloc(65_536, 'x'))
      },
    })

    await expect(read(parseEvents(endless))).rejects.toThrow('larger than 4 MiB')
  })
})

describe('a followed stream', () => {
  /**
   * Says two events from where it is asked to go on, with or without ids, and cuts the connection; from the fifth event
   * on it ends as one should.
   */
  const cutting = (ids: boolean, asked: (string | undefined)[]) => {
    const server = Bun.listen({
      hostname: '127.0.0.1',
      port: 0,
      socket: {
        data(socket, bytes) {
          const last = /last-event-id: (\d+)/i.exec(bytes.toString())?.[1]
          const from = Number(last ?? 0)
          asked.push(last)
          const body = [from + 1, from + 2].map((id) => `${ids ? `id: ${id}\n` : ''}data: ${id}\n\n`).join('')
          socket.write(
            `HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n${body.length.toString(16)}\r\n${body}\r\n${from < 4 ? '' : '0\r\n\r\n'}`,
          )
          setTimeout(() => {
            socket.end()
          }, 20) // Bun drops what it has not handed on yet when a connection is cut
        },
      },
    })
    return {
      client: connect({ kind: 'http', origin: `http://127.0.0.1:${server.port}`, token: undefined }),
      [Symbol.dispose]() {
        server.stop(true)
      },
    }
  }

  test('goes on where it was cut, by Last-Event-ID, and says nothing twice', async () => {
    const asked: (string | undefined)[] = []
    using it = cutting(true, asked)

    const events = await read(it.client.sse('events', { query: {} }))

    expect(events.map((event) => event.data)).toEqual(['1', '2', '3', '4', '5', '6'])
    expect(asked).toEqual([undefined, '2', '4'])
  })

  test('without ids is a fault when it is cut: nobody knows where to go on', async () => {
    using it = cutting(false, [])

    await expect(read(it.client.sse('events', { query: {} }))).rejects.toThrow('Lost the connection')
  })

  test('that has no end is asked for again after a clean one, and ends with its signal', async () => {
    let times = 0
    await using daemon = new FakeDaemon((_, path) =>
      path === '/api/v1/events' ? sse(`id: ${++times}\ndata: ${times}\n\n`) : undefined,
    )
    const abort = new AbortController()
    const seen: string[] = []

    for await (const event of connect(daemon.endpoint).sse(
      'events',
      { query: {} },
      { endless: true, signal: abort.signal },
    )) {
      seen.push(event.data)
      if (seen.length === 3) abort.abort()
    }

    expect(seen).toEqual(['1', '2', '3'])
  })

  test('ends with the fault that the daemon says in it', async () => {
    await using daemon = new FakeDaemon((_, path) =>
      path === '/api/v1/events'
        ? sse('event: error\ndata: {"code":"events_compacted","title":"Those are gone","status":410}\n\n')
        : undefined,
    )

    const error = await read(connect(daemon.endpoint).sse('events', { query: { after: 1 } })).catch(
      (reason: unknown) => reason,
    )

    expect(error).toBeInstanceOf(Fault)
    expect({ ...(error as Fault) }).toMatchObject({ code: 'events_compacted', kind: 'conflict' })
  })

  test('that is refused is the refusal, at once', async () => {
    await using daemon = new FakeDaemon()

    await expect(
      read(connect(daemon.endpoint).sse('vm.logs', { params: { name: 'gone' }, query: {} })),
    ).rejects.toThrow('Cannot find vm "gone"')
  })
})
