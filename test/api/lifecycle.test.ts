import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import {
  clean,
  cli,
  createVm,
  haveBinary,
  machinesOf,
  seedFake,
  startDaemon,
  until,
  type Daemon,
} from '../e2e/daemon.ts'

/** The compiled file on the fake driver: everything of a vm's life but a guest. */
describe.skipIf(!haveBinary)('the life of a vm', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon({ fake: true })
    await seedFake(daemon)
  })
  afterAll(async () => {
    await clean(daemon)
  })

  test('a create answers when the vm runs, with every default filled', async () => {
    const vm = await createVm(daemon, { name: 'one', cmd: ['sleep', '100'] })

    expect(vm).toMatchObject({
      name: 'one',
      status: 'running',
      cpu_cores: 1,
      memory_mb: 192,
      disk_mb: 10_240,
      vsock_cid: 3,
      runtime: 'vm',
    })
    expect(vm.pid).toBeGreaterThan(1)
    await daemon.client.call('vm.delete', { params: { name: 'one' } })
    await expect(daemon.client.call('vm.get', { params: { name: 'one' } })).rejects.toMatchObject({
      code: 'vm_not_found',
    })
    expect(machinesOf(daemon.state)).toEqual([])
  })

  test('stop, start, restart, pause and resume move it by the table', async () => {
    await createVm(daemon, { name: 'two', cmd: ['sleep', '100'] })
    const at = { params: { name: 'two' } }

    expect(await daemon.client.call('vm.pause', at)).toMatchObject({ status: 'paused' })
    await expect(daemon.client.call('vm.pause', at)).rejects.toMatchObject({ code: 'vm_wrong_state', kind: 'conflict' })
    expect(await daemon.client.call('vm.resume', at)).toMatchObject({ status: 'running' })
    expect(await daemon.client.call('vm.stop', { ...at, body: {} })).toMatchObject({ status: 'stopped', pid: null })
    expect(await daemon.client.call('vm.stop', { ...at, body: {} })).toMatchObject({ status: 'stopped' })
    expect(await daemon.client.call('vm.start', { ...at, body: {} })).toMatchObject({ status: 'running' })
    expect(await daemon.client.call('vm.restart', { ...at, body: {} })).toMatchObject({ status: 'running' })
    await daemon.client.call('vm.delete', at)
  })

  test('a workload that exits stops its vm with its code', async () => {
    await createVm(daemon, { name: 'three', cmd: ['sh', '-c', 'echo said; exit 7'] })

    const ended = await daemon.client.call('vm.wait', {
      params: { name: 'three' },
      query: { for: 'exit', timeout_s: 10 },
    })

    expect(ended).toMatchObject({ status: 'stopped', exit_code: 7 })
    expect((await cli(daemon, ['logs', 'three'])).stdout).toBe('said\n')
    await daemon.client.call('vm.delete', { params: { name: 'three' } })
  })

  test("a create with the same key finds the first one's vm, and one that asks for something else is refused", async () => {
    const want = { name: 'keyed', cmd: ['sleep', '100'] }

    const [first, second] = await Promise.all([createVm(daemon, want, 'k1'), createVm(daemon, want, 'k1')])

    expect(second.uid).toBe(first.uid)
    expect((await createVm(daemon, want, 'k1')).uid).toBe(first.uid)
    await expect(createVm(daemon, { ...want, memory_mb: 256 }, 'k1')).rejects.toMatchObject({
      code: 'idempotency_conflict',
    })
    await daemon.client.call('vm.delete', { params: { name: 'keyed' } })
  })

  test('a request that waits is not cut, however long it says nothing', async () => {
    await createVm(daemon, { name: 'silent', cmd: ['sleep', '100'] })

    const waited = daemon.client.call('vm.wait', { params: { name: 'silent' }, query: { for: 'exit', timeout_s: 34 } })

    await expect(waited).rejects.toMatchObject({ code: 'wait_timeout' })
    await daemon.client.call('vm.delete', { params: { name: 'silent' } })
  }, 60_000)

  test('a vm that removes itself is gone when its workload has ended', async () => {
    await createVm(daemon, { name: 'fleeting', cmd: ['sh', '-c', 'exit 3'], auto_remove: true })

    await until(async () => (await daemon.client.call('vm.list', { query: { q: 'fleeting' } })).length === 0)

    expect(machinesOf(daemon.state)).toEqual([])
  })

  test('a vm that somebody runs goes with them, and not with whoever looks at it', async () => {
    await createVm(daemon, { name: 'owned', cmd: ['sleep', '100'], hold: true, auto_remove: true })
    const params = { name: 'owned' }
    /** Attaches, and has been told so: who goes away before that has not been there. */
    const attached = async (stdin: boolean): Promise<WebSocket> => {
      const ws = new WebSocket(`ws+unix://${daemon.socket}:/api/v1/vms/owned/attach`)
      ws.binaryType = 'arraybuffer'
      const started = new Promise<void>((resolve, reject) => {
        ws.onmessage = ({ data }: MessageEvent<ArrayBuffer>) => {
          if (Buffer.from(data).toString().includes('"started"')) resolve()
        }
        ws.onclose = () => {
          reject(new Error('it was closed'))
        }
      })
      ws.onopen = () => {
        ws.send(JSON.stringify({ stdin }))
      }
      await started
      return ws
    }
    const gone = async (ws: WebSocket, leave: (ws: WebSocket) => void) => {
      const closed = new Promise((resolve) => (ws.onclose = resolve))
      leave(ws)
      await closed
    }
    const owner = await attached(true)
    for (const stdin of [false, true])
      for (const leave of [(ws: WebSocket) => ws.close(), (ws: WebSocket) => ws.terminate()])
        await gone(await attached(stdin), leave)
    const waited = daemon.client.call('vm.wait', { params, query: { for: 'exit', timeout_s: 4 } })

    await expect(waited).rejects.toMatchObject({ code: 'wait_timeout' })
    expect(await daemon.client.call('vm.get', { params })).toMatchObject({ status: 'running' })
    owner.close()
    await until(async () => (await daemon.client.call('vm.list', { query: { q: 'owned' } })).length === 0)
  })

  test('fifty creates at once get fifty names and CIDs, and no more than the host has', async () => {
    const creates = await Promise.allSettled(
      Array.from({ length: 50 }, () => createVm(daemon, { memory_mb: 64, cmd: ['sleep', '100'] })),
    )

    const made = creates.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
    const refused = creates.flatMap((one) => (one.status === 'rejected' ? [(one.reason as { code: string }).code] : []))
    const { capacity } = await daemon.client.call('system.summary', {})
    expect(made.length).toBe(capacity.cpu.limit)
    expect(new Set(refused)).toEqual(new Set(['capacity_exhausted']))
    expect(new Set(made.map((vm) => vm.name)).size).toBe(made.length)
    expect(new Set(made.map((vm) => vm.vsock_cid)).size).toBe(made.length)
    await Promise.all(made.map((vm) => daemon.client.call('vm.delete', { params: { name: vm.name } })))
    expect(machinesOf(daemon.state)).toEqual([])
  }, 60_000)

  test('events come in order, and a reader goes on where it was', async () => {
    await createVm(daemon, { name: 'seen', cmd: ['sleep', '100'] })
    await daemon.client.call('vm.delete', { params: { name: 'seen' } })
    const read = async (after: number) => {
      const seen: { seq: number; type: string }[] = []
      for await (const event of daemon.client.sse('events', { query: { after, follow: false, name: 'seen' } }))
        seen.push(JSON.parse(event.data) as { seq: number; type: string })
      return seen
    }

    const all = await read(0)

    expect(all.map((event) => event.type)).toEqual(['VM_CREATED', 'VM_STARTING', 'VM_RUNNING', 'VM_DELETED'])
    expect((await read(all[1]?.seq ?? 0)).map((event) => event.type)).toEqual(['VM_RUNNING', 'VM_DELETED'])
  })
})
