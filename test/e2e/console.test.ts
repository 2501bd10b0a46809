import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { clean, createVm, haveBinary, startDaemon, until, type Daemon } from './daemon.ts'

describe.skipIf(!haveBinary)('the console of a guest', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon()
    await createVm(daemon, { name: 'w', memory_mb: 160, cmd: ['sleep', '100000'] })
  }, 240_000)
  afterAll(async () => {
    await clean(daemon)
  })
  const exec = (script: string) =>
    daemon.client.call('vm.exec', { params: { name: 'w' }, body: { argv: ['sh', '-c', script] } })

  test('the console answers every viewer, and shows a late one what was', async () => {
    await exec('(while read line; do echo "console $line"; done) </dev/ttyS0 >/dev/ttyS0 2>&1 &')
    const view = () => {
      const seen = { text: '' }
      const ws = new WebSocket(`ws+unix://${daemon.socket}:/ws/v1/vms/w/console`)
      ws.binaryType = 'arraybuffer'
      ws.onmessage = (event) => {
        seen.text += Buffer.from(event.data as ArrayBuffer).toString()
      }
      return { seen, ws }
    }
    const one = view()
    const two = view()
    await until(() => one.ws.readyState === 1 && two.ws.readyState === 1)

    one.ws.send(Buffer.from('hello\n'))

    await until(() => one.seen.text.includes('console hello') && two.seen.text.includes('console hello'))
    const late = view()
    await until(() => late.seen.text.includes('console hello'))
    expect(two.seen.text).toContain('console hello')
    for (const { ws } of [one, two, late]) ws.close()
  }, 240_000)
})
