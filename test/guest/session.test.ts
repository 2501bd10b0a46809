import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { existsSync, statSync, writeFileSync } from 'node:fs'
import { encode, encodeJson, encodeOpen, FRAME, KIND } from '../../src/guest/frames.ts'
import { EVENTS_MAX } from '../../src/guest/messages.ts'
import { GuestSession } from '../../src/guest/session.ts'
import { folder, Owner, Peer, quiet } from './agent.ts'

let place: ReturnType<typeof folder>
let owner: Owner
let session: GuestSession
let path: string
const peers: Peer[] = []
const HELLO_MS = 150

beforeEach(async () => {
  place = folder()
  path = place.at('vsock_1024')
  owner = new Owner()
  session = await GuestSession.listen(path, undefined, owner, quiet, HELLO_MS)
})
afterEach(() => {
  for (const peer of peers.splice(0)) peer.close()
  session.close()
  place[Symbol.dispose]()
})

const connect = async (): Promise<Peer> => {
  const peer = await Peer.connect(path)
  peers.push(peer)
  return peer
}
/** The agent, configured. */
const begin = async (): Promise<{ agent: Peer; secret: string }> => {
  const agent = (await connect()).open(null)
  const { secret } = await agent.json()
  return { agent, secret: String(secret) }
}
const soon = () => AbortSignal.timeout(3000)

describe('the first session of a boot', () => {
  test('gets the configuration', async () => {
    const agent = (await connect()).open(null)

    expect(await agent.json()).toMatchObject({
      type: FRAME.ok,
      resumed: false,
      secret: '1'.repeat(64),
      hostname: 'h',
      root: { mode: 'overlay' },
    })
    expect(owner.configured).toBe(1)
  })

  test('is the only one while it is connected', async () => {
    await begin()
    const stranger = (await connect()).open(null)

    expect(await stranger.json()).toMatchObject({ type: FRAME.error, code: 'refused' })
    expect(await stranger.next()).toBeUndefined()
    expect(owner.configured).toBe(1)
  })

  test('is the only one once an event was taken, though it has gone', async () => {
    const { agent } = await begin()
    agent.event({ seq: 1, type: 'ready', boot_ms: 5 })
    expect(await agent.ack()).toBe(1)
    agent.close()

    const stranger = (await connect()).open(null)

    expect(await stranger.json()).toMatchObject({ code: 'refused' })
  })

  test('may be had again by an agent that went away before it had said anything', async () => {
    const { agent } = await begin()
    agent.close()

    let again = (await connect()).open(null)
    let answer = await again.json()
    for (let tries = 0; answer['code'] === 'refused' && tries < 50; tries++) {
      await Bun.sleep(5)
      again = (await connect()).open(null)
      answer = await again.json()
    }

    expect(answer).toMatchObject({ resumed: false, secret: '2'.repeat(64) })
  })

  test('whose configuration could not be made is not kept', async () => {
    const configure = owner.configure.bind(owner)
    owner.configure = () => {
      throw new Error('the vm has gone')
    }
    expect(await (await connect()).open(null).next()).toBeUndefined()

    owner.configure = configure

    expect(await (await connect()).open(null).json()).toMatchObject({ type: FRAME.ok, resumed: false })
  })
})

describe('a session that is resumed', () => {
  test('with the secret goes on after the last event that was taken', async () => {
    const { agent, secret } = await begin()
    agent.event({ seq: 1, type: 'ready', boot_ms: 5 }).event({ seq: 2, type: 'started', pid: 9 })
    expect([await agent.ack(), await agent.ack()]).toEqual([1, 2])
    agent.close()

    const again = (await connect()).open(secret)

    expect(await again.json()).toMatchObject({ type: FRAME.ok, resumed: true, acked: 2 })
    again.event({ seq: 2, type: 'started', pid: 9 }).event({ seq: 3, type: 'button' })
    expect([await again.ack(), await again.ack()]).toEqual([2, 3])
    expect(owner.taken.map((event) => event.seq)).toEqual([1, 2, 3])
    expect(owner.configured).toBe(1)
  })

  test('with another secret is refused', async () => {
    const { secret } = await begin()

    for (const wrong of ['', 'f'.repeat(64), secret.slice(1), `${secret}0`])
      expect(await (await connect()).open(wrong).json()).toMatchObject({ type: FRAME.error, code: 'refused' })
  })

  test('before the first configuration is refused', async () => {
    expect(await (await connect()).open('1'.repeat(64)).json()).toMatchObject({ code: 'refused' })
  })

  test('takes the place of the connection that the host still thought alive', async () => {
    const { agent, secret } = await begin()
    const lost = session.request('ping', {}, soon())
    lost.catch(() => undefined) // it fails before this test looks
    expect(await agent.json()).toMatchObject({ op: 'ping' })

    const again = (await connect()).open(secret)
    expect(await again.json()).toMatchObject({ resumed: true })

    expect(await agent.next()).toBeUndefined()
    await expect(lost).rejects.toMatchObject({ code: 'agent_unavailable' })
    const asked = session.request('stop', { grace_ms: 7 }, soon())
    const { id, grace_ms } = await again.json()
    again.send(encodeJson(FRAME.reply, { id, ok: true }))
    expect(await asked).toMatchObject({ ok: true })
    expect(grace_ms).toBe(7)
  })

  test('is known by the next daemon', async () => {
    const { agent, secret } = await begin()
    agent.event({ seq: 1, type: 'ready', boot_ms: 5 })
    await agent.ack()
    session.close()
    expect(await agent.next()).toBeUndefined()

    session = await GuestSession.listen(path, undefined, owner, quiet, HELLO_MS)

    expect(await (await connect()).open(null).json()).toMatchObject({ code: 'refused' })
    expect(await (await connect()).open(secret).json()).toMatchObject({ resumed: true, acked: 1 })
  })
})

describe('an event', () => {
  test('is acknowledged when it is durable, and not before', async () => {
    const durable = Promise.withResolvers<void>()
    owner.taking = () => durable.promise
    const { agent } = await begin()
    agent.event({ seq: 1, type: 'exited', code: 7, signal: null, oom: false, message: null })

    const acked = agent.ack()
    expect(await Promise.race([acked, Bun.sleep(50).then(() => 'none yet')])).toBe('none yet')
    durable.resolve()

    expect(await acked).toBe(1)
    expect(owner.taken).toEqual([{ seq: 1, type: 'exited', code: 7, signal: null, oom: false, message: null }])
  })

  test('that could not be kept is not acknowledged: the agent says it again', async () => {
    owner.taking = () => Promise.reject(new Error('disk full'))
    const { agent, secret } = await begin()
    agent.event({ seq: 1, type: 'ready', boot_ms: 5 })
    expect(await agent.next()).toBeUndefined()

    owner.taking = () => Promise.resolve()
    const again = (await connect()).open(secret)

    expect(await again.json()).toMatchObject({ resumed: true, acked: 0 })
    again.event({ seq: 1, type: 'ready', boot_ms: 5 })
    expect(await again.ack()).toBe(1)
  })

  const WRONG: readonly (readonly [string, object])[] = [
    ['has no number', { type: 'button' }],
    ['has number 0', { seq: 0, type: 'button' }],
    ['has a word as its number', { seq: '1', type: 'button' }],
    ['has a fraction', { seq: 1.5, type: 'button' }],
    ['is of an unknown type', { seq: 1, type: 'party' }],
    ['says words where numbers belong', { seq: 1, type: 'ready', boot_ms: 'soon' }],
    ['lacks a field', { seq: 1, type: 'exited', code: 0 }],
    [
      'holds an object where a number belongs',
      { seq: 1, type: 'exited', code: {}, signal: null, oom: false, message: null },
    ],
    ['comes after more than a boot may have', { seq: EVENTS_MAX + 1, type: 'button' }],
  ]
  for (const [name, body] of WRONG) {
    test(`that ${name} costs the connection and is not taken`, async () => {
      const { agent } = await begin()

      agent.event(body)

      expect(await agent.next()).toBeUndefined()
      expect(owner.taken).toEqual([])
    })
  }
})

describe('a request', () => {
  test('waits for the agent, and fails where it does not come in time', async () => {
    const asked = session.request('ping', {}, soon())
    const { agent } = await begin()
    const { id } = await agent.json()
    agent.send(encodeJson(FRAME.reply, { id, ok: true, x: 1 }))
    expect(await asked).toMatchObject({ ok: true, x: 1 })

    agent.close()
    await expect(session.request('ping', {}, AbortSignal.timeout(50))).rejects.toMatchObject({
      code: 'agent_unavailable',
    })
  })

  test('that the agent refuses says why', async () => {
    const { agent } = await begin()
    const asked = session.request('signal', { signal: 9 }, soon())
    const { id } = await agent.json()
    asked.catch(() => undefined)
    agent.send(encodeJson(FRAME.reply, { id, ok: false, code: 'busy', message: 'there is no workload' }))

    await expect(asked).rejects.toThrow('there is no workload')
  })

  test('fails when the connection breaks under it', async () => {
    const { agent } = await begin()
    const asked = session.request('ping', {}, soon())
    await agent.json()
    agent.close()

    await expect(asked).rejects.toMatchObject({ code: 'agent_unavailable' })
  })

  test('is not answered by a reply to another one', async () => {
    const { agent } = await begin()
    const asked = session.request('ping', {}, soon())
    const { id } = await agent.json()
    agent
      .send(encodeJson(FRAME.reply, { id: 999, ok: true, wrong: true }))
      .send(encodeJson(FRAME.reply, { ok: true }))
      .send(encodeJson(FRAME.reply, { id, ok: true }))

    expect(await asked).not.toHaveProperty('wrong')
  })
})

describe('a stranger', () => {
  test('that says nothing is dropped when its time is over', async () => {
    const stranger = await connect()
    const start = performance.now()

    expect(await stranger.next()).toBeUndefined()

    expect(performance.now() - start).toBeGreaterThan(HELLO_MS - 20)
  })

  test('that speaks another generation is told which there are', async () => {
    const open = encodeOpen(KIND.session, {})
    open.writeUInt16LE(9, 9)

    expect(await (await connect()).send(open).json()).toMatchObject({
      type: FRAME.error,
      code: 'generation_unknown',
      supported: [1],
    })
  })

  test('that wants another conversation is refused', async () => {
    expect(await (await connect()).send(encodeOpen(KIND.exec, { argv: ['id'] })).json()).toMatchObject({
      code: 'kind_unknown',
    })
  })

  const NOISE: readonly (readonly [string, Uint8Array])[] = [
    ['HTTP', Buffer.from('GET / HTTP/1.1\r\nhost: x\r\n\r\n')],
    ['zeros', new Uint8Array(4096)],
    ['a frame that is no open', encode(FRAME.stdout, Buffer.from('x'))],
    [
      'an open without its magic',
      Buffer.concat([Buffer.from([10, 0, 0, 0, 1]), Buffer.from('NOPE\x01\x00\x01\x00{}', 'latin1')]),
    ],
  ]
  for (const [name, bytes] of NOISE) {
    test(`that sends ${name} costs its own connection and nothing else`, async () => {
      const stranger = (await connect()).send(bytes)

      expect(await stranger.next()).toBeUndefined()
      expect(await (await connect()).open(null).json()).toMatchObject({ resumed: false })
    })
  }

  test('that sends frames which have no place there is dropped, though it was the agent', async () => {
    const { agent, secret } = await begin()
    agent.send(encode(FRAME.stdout, Buffer.from('x')))

    expect(await agent.next()).toBeUndefined()
    expect(await (await connect()).open(secret).json()).toMatchObject({ resumed: true })
  })

  test('with a hundred friends does not keep the agent out, nor does what they hold grow', async () => {
    const { secret } = await begin()
    const crowd = await Promise.all(Array.from({ length: 100 }, () => connect()))

    const again = (await connect()).open(secret)

    expect(await again.json()).toMatchObject({ resumed: true })
    let open = crowd.length
    for (const stranger of crowd)
      void stranger.next().then(() => {
        open--
      })
    await Bun.sleep(HELLO_MS / 3)
    expect(open).toBeLessThanOrEqual(8)
    again.event({ seq: 1, type: 'ready', boot_ms: 1 })
    expect(await again.ack()).toBe(1)
  })
})

describe('a guest that is never quiet', () => {
  /** Sends frames until the connection ends, and tells how many the owner took. */
  const flood = async (frames: (n: number) => Uint8Array): Promise<void> => {
    const { agent } = await begin()
    for (let n = 1; n <= 500; n++) agent.send(frames(n))
    while (await agent.next());
  }

  test('loses its connection after a few new events, and is not written down without end', async () => {
    await flood((n) => encodeJson(FRAME.event, { seq: n, type: 'button' }))

    expect(owner.taken.length).toBeGreaterThan(3)
    expect(owner.taken.length).toBeLessThan(30)
  })

  test('loses its connection after a few that were taken already', async () => {
    await flood(() => encodeJson(FRAME.event, { seq: 1, type: 'button' }))

    expect(owner.taken.length).toBe(1)
  })

  test('loses its connection after a few answers that nobody asked for', async () => {
    await flood((n) => encodeJson(FRAME.reply, { id: n, ok: true }))

    expect(owner.taken).toEqual([])
  })

  test('gets no new allowance by connecting again', async () => {
    await flood((n) => encodeJson(FRAME.event, { seq: n, type: 'button' }))
    const before = owner.taken.length
    const again = (await connect()).open('1'.repeat(64))
    expect(await again.json()).toMatchObject({ resumed: true })
    for (let n = 0; n < 100; n++) again.event({ seq: before + 1 + n, type: 'button' })
    while (await again.next());

    expect(owner.taken.length - before).toBeLessThan(5)
  })

  test('is not listened to for a moment when it connects without end, and is then heard again', async () => {
    const { secret } = await begin()
    let refused = 0
    for (let n = 0; n < 400; n++) {
      const peer = await Peer.connect(path).catch(() => undefined)
      if (peer) peers.push(peer)
      else refused++
    }
    expect(refused).toBeGreaterThan(50)

    let back: Record<string, unknown> | undefined
    while (back?.['resumed'] !== true) {
      const peer = await Peer.connect(path).catch(() => undefined)
      back = await peer
        ?.open(secret)
        .json()
        .catch(() => undefined)
      peer?.close()
      await Bun.sleep(20)
    }
    expect(statSync(path).mode & 0o777).toBe(0o600)
  })

  test('that sends a hello of a quarter of a megabyte is not read', async () => {
    const stranger = (await connect()).send(encodeOpen(KIND.session, { secret: 'x'.repeat(200_000) }))

    expect(await stranger.next()).toBeUndefined()
  })
})

test("the socket is for the machine's own user alone, and one that an earlier daemon left is replaced", async () => {
  expect(statSync(path).mode & 0o777).toBe(0o600)
  session.close()
  writeFileSync(path, '')

  session = await GuestSession.listen(path, undefined, owner, quiet)

  expect(await (await connect()).open(null).json()).toMatchObject({ resumed: false })
})

test('a session that is closed takes its socket and every connection with it', async () => {
  const { agent } = await begin()
  const stranger = await connect()

  session.close()

  expect(await agent.next()).toBeUndefined()
  expect(await stranger.next()).toBeUndefined()
  expect(existsSync(path)).toBe(false)
})
