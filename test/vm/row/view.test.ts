import { afterEach, beforeEach, expect, test } from 'bun:test'
import { view } from '../../../src/vm/row/view.ts'
import { testHost, type TestHost } from '../host.ts'

let bed: TestHost
beforeEach(() => {
  bed = testHost()
})
afterEach(async () => {
  await bed[Symbol.asyncDispose]()
})

test('the view of a vm shows the names of its environment and no value', () => {
  const row = bed.vm('web', {}, { env: { TOKEN: 's3cret', A: 'b' }, cmd: ['x'] })

  expect(view(row)).toMatchObject({
    env_names: ['TOKEN', 'A'],
    cmd: ['x'],
    entrypoint: null,
    pid: null,
    serial_socket: '',
    status: 'running',
    started_at: null,
  })
  expect(JSON.stringify(view(row))).not.toContain('s3cret')
})
