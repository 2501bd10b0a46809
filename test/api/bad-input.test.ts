import { Database } from 'bun:sqlite'
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { clean, createVm, haveBinary, machinesOf, seedFake, startDaemon, until, type Daemon } from '../e2e/daemon.ts'
import { ask, portOf, UPGRADE, type Ask } from './http.ts'

/**
 * A request that is wrong, and what is said of it: the status, the code, and the field or a word of the sentence that
 * names what is wrong.
 */
type Case = readonly [name: string, ask: Ask, status: number, code: string, names: string | RegExp]

const create = (body: unknown): Ask => ({
  method: 'POST',
  path: '/api/v1/vms',
  body: typeof body === 'string' ? body : JSON.stringify(body),
})
const post = (path: string, body?: unknown): Ask => ({
  method: 'POST',
  path,
  ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
})
const upload = (path: string, body: Uint8Array | string): Ask => ({
  method: 'POST',
  path,
  body,
  headers: { 'content-type': 'application/x-tar' },
})
const invalid = (name: string, request: Ask, names: string | RegExp): Case => [
  name,
  request,
  400,
  'request_invalid',
  names,
]
const fit = (field: string, ...values: unknown[]): Case[] =>
  values.map((value) =>
    invalid(
      `a vm whose ${field} is ${JSON.stringify(value)?.slice(0, 40) ?? 'NaN'}`,
      create({ [field]: value }),
      field,
    ),
  )

/** One entry of a tar (POSIX.1-1988 ustar): what no honest program writes. */
const entry = (
  name: string,
  {
    type = '0',
    link = '',
    size = 0,
    mode = 0o644,
    checksum = true,
  }: { type?: string; link?: string; size?: number; mode?: number; checksum?: boolean } = {},
): Buffer => {
  const head = Buffer.alloc(512)
  head.write(name, 0, 100)
  head.write(`${mode.toString(8).padStart(7, '0')}\0`, 100)
  head.write('0000000\0' + '0000000\0', 108)
  head.write(`${size.toString(8).padStart(11, '0')}\0`, 124)
  head.write('00000000000\0', 136)
  head.write('        ', 148)
  head.write(type, 156)
  head.write(link, 157, 100)
  head.write('ustar\x0000', 257)
  if (checksum)
    head.write(
      `${head
        .reduce((sum, byte) => sum + byte, 0)
        .toString(8)
        .padStart(6, '0')}\0 `,
      148,
    )
  return Buffer.concat([head, Buffer.alloc(Math.ceil(Math.min(size, 4096) / 512) * 512, 'x')])
}
const END = Buffer.alloc(1024)
const tar = (...entries: Buffer[]): Buffer => Buffer.concat([...entries, END])
const image = (body: Uint8Array | string, query = 'name=x'): Ask => upload(`/api/v1/images/import?${query}`, body)
const kernel = (body: Uint8Array | string, query = ''): Ask => upload(`/api/v1/kernels/import?${query}`, body)
const tiny = tar(entry('etc/', { type: '5', mode: 0o755 }))
const json = (value: unknown): string => encodeURIComponent(JSON.stringify(value))

const CASES: readonly Case[] = [
  // what is no request of ours
  ['an unknown route', { path: '/api/v1/nothing' }, 404, 'route_not_found', /openapi/],
  ['a route of another version', { path: '/api/v2/vms' }, 404, 'route_not_found', /openapi/],
  ['the root', { path: '/' }, 404, 'route_not_found', /openapi/],
  ['a method that a route does not have', { method: 'PATCH', path: '/api/v1/vms' }, 404, 'route_not_found', /openapi/],
  ['a method that does not exist', { method: 'PROPFIND', path: '/api/v1/vms' }, 404, 'route_not_found', /openapi/],
  ['a path that is no UTF-8', { path: '/api/v1/vms/%ff' }, 400, 'request_invalid', 'name'],
  ['a path with half an escape', { path: '/api/v1/vms/%zz' }, 400, 'request_invalid', 'name'],
  ['a name of a hundred letters', { path: `/api/v1/vms/${'x'.repeat(100)}` }, 400, 'request_invalid', 'name'],

  // what is no JSON, or too much of it
  invalid('a body that is no JSON', create('{"name": "x"'), /no JSON/),
  invalid('a body that is nothing', create(''), /./),
  invalid('a body that is a word', create('"x"'), /./),
  invalid('a body that is a list', create('[]'), /./),
  invalid('a body that is null', create('null'), /./),
  invalid(
    'a body with more than the arguments that Linux takes',
    create(`{"name":"${'x'.repeat(16 * 2 ** 20)}"}`),
    /larger than 16777216 bytes/,
  ),
  invalid(
    'a body of more than 2 MiB, where no arguments are',
    { method: 'POST', path: '/api/v1/tokens', body: `{"name":"${'x'.repeat(2 * 2 ** 20)}"}` },
    /larger than 2097152 bytes/,
  ),
  invalid('JSON nested a hundred thousand times', create('['.repeat(100_000) + ']'.repeat(100_000)), /./),
  invalid(
    'a field nested a hundred thousand times',
    create(`{"env":${'{"a":'.repeat(100_000)}1${'}'.repeat(100_000)}}`),
    /./,
  ),
  invalid('JSON that says it is a form', { ...create({ name: 'x' }), headers: { 'content-type': 'text/plain' } }, /./),

  // what no vm can be
  invalid('an unknown field', create({ nam: 'x' }), 'nam'),
  invalid('a field that every object has', create('{"__proto__": {"name": "x"}}'), '__proto__'),
  invalid('another one', create('{"constructor": 1}'), 'constructor'),
  ...fit('name', '', 'A', '-a', 'a-', 'a_b', 'a.b', 'a b', 'ä', 'x'.repeat(64), 'a\n', 'a/b', '..', 7, null, ['x'], {}),
  ...fit('image', '', 'x'.repeat(256), 7, null),
  ...fit('cpu_cores', 0, -1, 65, 1.5, '2', null, 1e300),
  ...fit('memory_mb', 0, 63, -512, 1024 * 1024 + 1, 512.5, '512', null),
  ...fit('disk_mb', 0, 63, 4 * 1024 * 1024 + 1, '10g'),
  ...fit('shm_size_mb', 0, -1, 1.5, '64m', null, 1024 * 1024 + 1),
  ...fit('network_bandwidth_download', -1, 1.5, 2 ** 41, null, 'fast', '100MBps', '-1', '1e9', '', '100 Mb', ['1m']),
  ...fit('disk_io_bps', -1, 1.5, 2 ** 41, null, 'fast', '100MB/h', '-1', '1e9', '', '100 MB / s', ['1m']),
  ...fit('entrypoint', 'sh', [1], [null], ['a\0b'], ['x'.repeat(131_073)]),
  ...fit('cmd', 'sh', [{}], ['a\0b'], ['x'.repeat(131_073)]),
  ...fit(
    'env',
    ['A=1'],
    { 'A=B': 'x' },
    { '': 'x' },
    { A: 1 },
    { A: null },
    { A: 'a\0b' },
    { 'A\0': 'x' },
    { ['x'.repeat(257)]: 'x' },
  ),
  ...fit('workdir', '', 'relative', '/a\0b', `/${'x'.repeat(4096)}`),
  ...fit('user', 'x'.repeat(129), 'a\0', 'a\nb', 0),
  // half of a letter of UTF-16, which is no text; in a command line those that stand for a byte are taken
  ...[
    { cmd: ['\ud800'] },
    { cmd: ['\udcff\ud83d'] },
    { entrypoint: ['\udd00'] },
    { env: { A: '\udcff' } },
    { env: { '\udcff': 'x' } },
    { workdir: '/\udcff' },
    { user: '\ud800' },
    { metadata: { a: '\udfff' } },
  ].map((one) => invalid(`half a letter in ${JSON.stringify(one)}`, create(one), 'surrogate')),
  ...fit('port', 0, 65_536, -1, '80', 8080.5),
  ...fit('network', 'vsock', { mode: 'bridge' }, { mode: 'vsock', subnet: 'x' }, { network: 'A B' }),
  ...fit('nics', {}, [{ mode: 'user' }], [{ mac_address: 'x' }], Array(8).fill({})),
  ...fit('kernel_cmdline', 'x'.repeat(1025), 'a\nb', 'a\0b', 7),
  ...fit('hypervisor', 'xen', '', 7),
  ...fit('stop_timeout_s', -1, 3601, 1.5, '5'),
  ...fit('metadata', 'x', { 'a b': 'x' }, { '': 'x' }, { a: 1 }, { a: 'x'.repeat(1025) }),
  ...fit('tty', 'yes', 1, null),
  invalid(
    'an environment that no program would be given',
    create({ cmd: ['x'], env: { A: 'x'.repeat(131_073) } }),
    /env/,
  ),
  invalid(
    'an empty Idempotency-Key',
    { ...create({}), headers: { 'content-type': 'application/json', 'idempotency-key': '' } },
    'Idempotency-Key',
  ),
  invalid(
    'an Idempotency-Key without end',
    { ...create({}), headers: { 'content-type': 'application/json', 'idempotency-key': 'x'.repeat(256) } },
    'Idempotency-Key',
  ),

  // what is not there, or not free
  ['an image that is not there', create({ image: 'nothing' }), 404, 'image_not_found', /aerie image/],
  [
    'an image by a digest that is not there',
    create({ image: `sha256:${'0'.repeat(64)}` }),
    404,
    'image_not_found',
    /aerie image/,
  ],
  ['a kernel that is not there', create({ kernel: 'nothing' }), 404, 'kernel_not_found', /aerie kernel import/],
  [
    'a hypervisor that this host has not',
    create({ hypervisor: 'talon' }),
    503,
    'hypervisor_unavailable',
    /aerie doctor/,
  ],
  ['a name that is taken', create({ name: 'up', cmd: ['sleep', '9'] }), 409, 'vm_exists', /aerie rm up/],
  ['more memory than there is', create({ memory_mb: 1024 * 1024 }), 507, 'capacity_exhausted', /1048576 MiB of memory/],
  ['more processors than there are', create({ cpu_cores: 64 }), 507, 'capacity_exhausted', /64 vCPU of cpu/],
  ['a held workload that is none', create({ hold: true, entrypoint: [] }), 400, 'workload_missing', /command/],
  ...['', '/stats', '/stat?path=/', '/list?path=/', '/logs', '/wait'].map(
    (path): Case => [
      `${path === '' ? 'a' : path.slice(1).replace(/\?.*/, '')} of a vm that is not there`,
      { path: `/api/v1/vms/nothing${path}` },
      404,
      'vm_not_found',
      /aerie ps/,
    ],
  ),
  ...['start', 'stop', 'restart', 'pause', 'resume'].map(
    (verb): Case => [
      `${verb} of a vm that is not there`,
      post(`/api/v1/vms/nothing/${verb}`),
      404,
      'vm_not_found',
      /aerie ps/,
    ],
  ),
  [
    'delete of a vm that is not there',
    { method: 'DELETE', path: '/api/v1/vms/nothing' },
    404,
    'vm_not_found',
    /aerie ps/,
  ],
  [
    'exec in a vm that is not there',
    post('/api/v1/vms/nothing/exec', { argv: ['x'] }),
    404,
    'vm_not_found',
    /aerie ps/,
  ],
  ['a beginning of a uid that tells nothing', { path: '/api/v1/vms/vm_' }, 404, 'vm_not_found', /"vm_"/],

  // what a vm in its state cannot do
  ['start of a vm that runs', post('/api/v1/vms/up/start', {}), 409, 'vm_wrong_state', /it is running/],
  ['resume of a vm that runs', post('/api/v1/vms/up/resume'), 409, 'vm_wrong_state', /it is running/],
  ['pause of a vm that has stopped', post('/api/v1/vms/down/pause'), 409, 'vm_wrong_state', /it is stopped/],
  [
    'exec in a vm that has stopped',
    post('/api/v1/vms/down/exec', { argv: ['x'] }),
    409,
    'vm_wrong_state',
    /it is stopped/,
  ],
  ['stats of a vm that has stopped', { path: '/api/v1/vms/down/stats' }, 409, 'vm_wrong_state', /it is stopped/],
  [
    'a wait for the readiness of a vm that has stopped',
    { path: '/api/v1/vms/down/wait?for=ready' },
    409,
    'vm_ended',
    /it is stopped/,
  ],
  [
    'a wait whose time is over',
    { path: '/api/v1/vms/up/wait?for=stopped&timeout_s=0.05' },
    504,
    'wait_timeout',
    /within 0.05 s/,
  ],
  ['a proxy to a vm that declares no port', { path: '/api/v1/vms/up/agent/' }, 409, 'port_undeclared', /--port/],
  [
    'an upgrade through the proxy',
    { path: '/api/v1/vms/up/agent/ws', headers: UPGRADE },
    400,
    'upgrade_unsupported',
    /aerie forward/,
  ],

  // verbs with wrong words
  invalid('a stop with an unknown field', post('/api/v1/vms/up/stop', { force: true }), 'force'),
  invalid('a stop with a negative grace', post('/api/v1/vms/up/stop', { timeout_s: -1 }), 'timeout_s'),
  invalid('a start with more than a workload', post('/api/v1/vms/down/start', { memory_mb: 64 }), 'memory_mb'),
  invalid('a start with a NUL', post('/api/v1/vms/down/start', { cmd: ['a\0'] }), 'cmd'),
  invalid('an exec of nothing', post('/api/v1/vms/up/exec', { argv: [] }), 'argv'),
  invalid('an exec without a command', post('/api/v1/vms/up/exec', {}), 'argv'),
  invalid('an exec of numbers', post('/api/v1/vms/up/exec', { argv: [1] }), 'argv'),
  invalid('an exec of a word with a NUL', post('/api/v1/vms/up/exec', { argv: ['a\0b'] }), 'argv'),
  invalid('an exec in a folder without a name', post('/api/v1/vms/up/exec', { argv: ['x'], cwd: '' }), 'cwd'),
  invalid('an exec in a folder with a NUL', post('/api/v1/vms/up/exec', { argv: ['x'], cwd: 'a\0b' }), 'cwd'),
  invalid('an exec with no time', post('/api/v1/vms/up/exec', { argv: ['x'], timeout_ms: 0 }), 'timeout_ms'),
  invalid(
    'an exec with a terminal, that one answer cannot be',
    post('/api/v1/vms/up/exec', { argv: ['x'], tty: true }),
    'tty',
  ),
  invalid(
    'an exec with a word that no program would be given',
    post('/api/v1/vms/up/exec', { argv: ['x', 'x'.repeat(131_073)] }),
    /argv/,
  ),
  invalid('a path of the guest that is relative', { path: '/api/v1/vms/up/stat?path=etc' }, 'path'),
  invalid('a path of the guest that is none', { path: '/api/v1/vms/up/stat' }, 'path'),
  invalid('a path of the guest with a NUL', { path: '/api/v1/vms/up/stat?path=/a%00b' }, 'path'),
  invalid('a list of nothing', { path: '/api/v1/vms/up/list?path=/&limit=0' }, 'limit'),
  invalid(
    'a copy into a relative folder',
    { method: 'PUT', path: '/api/v1/vms/up/files?path=opt', body: tiny },
    'path',
  ),
  invalid(
    'a copy for an owner that is none',
    { method: 'PUT', path: '/api/v1/vms/up/files?path=/opt&owner=me', body: tiny },
    'owner',
  ),
  invalid('a wait for something else', { path: '/api/v1/vms/up/wait?for=lunch' }, 'for'),
  invalid('a wait for a negative time', { path: '/api/v1/vms/up/wait?timeout_s=-1' }, 'timeout_s'),
  invalid('a WebSocket that is not asked for as one', { path: '/api/v1/vms/up/exec' }, /WebSocket/),
  invalid(
    'a forward to nothing',
    { path: '/api/v1/vms/up/forward', headers: UPGRADE },
    /neither a port nor a Unix socket/,
  ),
  invalid('a forward to port 0', { path: '/api/v1/vms/up/forward?port=0', headers: UPGRADE }, /port/),
  invalid('a forward to port 70000', { path: '/api/v1/vms/up/forward?port=70000', headers: UPGRADE }, /port/),
  invalid(
    'a forward to a relative socket',
    { path: '/api/v1/vms/up/forward?unix=run/x.sock', headers: UPGRADE },
    /unix/,
  ),
  invalid('a WebSocket to a name that is no UTF-8', { path: '/api/v1/vms/%ff/exec', headers: UPGRADE }, /UTF-8/),
  [
    'a WebSocket to a vm that is not there',
    { path: '/api/v1/vms/nothing/exec', headers: UPGRADE },
    404,
    'vm_not_found',
    /aerie ps/,
  ],

  // lists, logs, events
  [
    'a filter by a state that is none',
    { path: '/api/v1/vms?status=running,asleep' },
    400,
    'filter_invalid',
    /"asleep" is no state/,
  ],
  ['a filter by metadata that is no pair', { path: '/api/v1/vms?metadata=team' }, 400, 'filter_invalid', /key=value/],
  invalid('a sort by a secret column', { path: '/api/v1/vms?sort=session_secret' }, 'sort'),
  invalid('an order that is none', { path: '/api/v1/vms?order=up' }, 'order'),
  invalid('a page of nothing', { path: '/api/v1/vms?limit=0' }, 'limit'),
  invalid('a page of everything', { path: '/api/v1/vms?limit=1001' }, 'limit'),
  invalid('a page that is a word', { path: '/api/v1/vms?limit=ten' }, 'limit'),
  invalid('a place before the first', { path: '/api/v1/vms?offset=-1' }, 'offset'),
  ['logs since a word', { path: '/api/v1/vms/up/logs?since=yesterday' }, 400, 'since_invalid', /RFC 3339/],
  ['logs since nothing', { path: '/api/v1/vms/up/logs?since=' }, 400, 'since_invalid', /RFC 3339/],
  invalid('a negative tail', { path: '/api/v1/vms/up/logs?tail=-1' }, 'tail'),
  invalid('a source that is none', { path: '/api/v1/vms/up/logs?source=secrets' }, 'source'),
  invalid('events after a word', { path: '/api/v1/events?after=soon' }, 'after'),
  invalid('events after a negative number', { path: '/api/v1/events?after=-1' }, 'after'),
  [
    'events from before the oldest',
    { path: '/api/v1/events?after=1' },
    409,
    'events_compacted',
    /the oldest that is kept is \d+/,
  ],
  [
    'events after a Last-Event-ID from before the oldest',
    { path: '/api/v1/events/vms', headers: { 'last-event-id': '1' } },
    409,
    'events_compacted',
    /List the vms anew/,
  ],

  // images and kernels
  invalid('an image without a name', image(tiny, ''), 'name'),
  ...['', 'A', '-x', 'x-', 'a b', '../x', 'x'.repeat(256)].map((name) =>
    invalid(
      `an image that is called ${JSON.stringify(name.slice(0, 20))}`,
      image(tiny, `name=${encodeURIComponent(name)}`),
      'name',
    ),
  ),
  ...(['entrypoint', 'cmd', 'env'] as const).flatMap((field) =>
    ['sh', '{"a":1}', '[1]', '"x"', ''].map((value) =>
      invalid(
        `an image whose ${field} is ${JSON.stringify(value)}`,
        image(tiny, `name=x&${field}=${encodeURIComponent(value)}`),
        field,
      ),
    ),
  ),
  ...[['A'], ['=x'], ['A=a\0']].map((env) =>
    invalid(`an image whose env is ${JSON.stringify(env)}`, image(tiny, `name=x&env=${json(env)}`), 'env'),
  ),
  invalid('an image with a relative workdir', image(tiny, 'name=x&workdir=srv'), 'workdir'),
  ['an image of nothing', image(''), 400, 'archive_invalid', /archive/],
  ['an image of noise', image(Buffer.alloc(4096, 'noise')), 400, 'archive_invalid', /archive/],
  ['an image of a text', image('this is no tar'), 400, 'archive_invalid', /archive/],
  ['a tar that is cut in its content', image(entry('etc/big', { size: 1_000_000 })), 400, 'archive_invalid', /archive/],
  [
    'a tar that is cut in a header',
    image(Buffer.concat([tiny.subarray(0, 512), Buffer.alloc(100, 'x')])),
    400,
    'archive_invalid',
    /archive/,
  ],
  [
    'a tar whose header was changed',
    image(tar(entry('etc/x', { checksum: false }))),
    400,
    'archive_invalid',
    /archive/,
  ],
  [
    'a gzip that is cut',
    image(Buffer.from(Bun.gzipSync(Uint8Array.from(tiny))).subarray(0, 40)),
    400,
    'archive_invalid',
    /^Cannot decompress gzip data: it ends too early/,
  ],
  ['a gzip of noise', image(Bun.gzipSync(Buffer.alloc(9000, 'noise'))), 400, 'archive_invalid', /archive/],
  ['an entry that climbs out', image(tar(entry('../../etc/passwd'))), 400, 'archive_invalid', /\.\./],
  ['an entry that climbs out in the middle', image(tar(entry('etc/../../passwd'))), 400, 'archive_invalid', /\.\./],
  [
    'a hard link to what is outside',
    image(tar(entry('x', { type: '1', link: '../../etc/shadow' }))),
    400,
    'archive_invalid',
    /./,
  ],
  [
    'a hard link to what is not there',
    image(tar(entry('x', { type: '1', link: 'nothing' }))),
    400,
    'archive_invalid',
    /./,
  ],
  ['an image that is not there', { path: '/api/v1/images/nothing' }, 404, 'image_not_found', /aerie image/],
  ['an image by a name with escapes', { path: '/api/v1/images/%25zz' }, 404, 'image_not_found', /aerie image/],
  [
    'delete of an image that is not there',
    { method: 'DELETE', path: '/api/v1/images/nothing' },
    404,
    'image_not_found',
    /aerie image/,
  ],
  ['delete of an image that vms use', { method: 'DELETE', path: '/api/v1/images/base' }, 409, 'image_in_use', /up/],
  ['a kernel of nothing', kernel(''), 400, 'archive_invalid', /archive/],
  ['a kernel of noise', kernel(Buffer.alloc(4096, 'noise')), 400, 'archive_invalid', /archive/],
  ['a tar without a kernel', kernel(tiny), 400, 'kernel_missing', /kernel/],
  [
    'a Debian package that is cut',
    kernel('!<arch>\ndebian-binary   0           0     0     100644  4         `\n2.0\n'),
    400,
    'archive_invalid',
    /./,
  ],
  invalid('a kernel with a bad name', kernel(tiny, 'name=a%2Fb'), 'name'),
  invalid('a kernel that may be the default', kernel(tiny, 'default=perhaps'), 'default'),
  [
    'delete of a kernel that is not there',
    { method: 'DELETE', path: '/api/v1/kernels/nothing' },
    404,
    'kernel_not_found',
    /aerie kernel import/,
  ],

  // tokens
  ...['', 'a b', '-a', 'x'.repeat(64)].map((name) =>
    invalid(`a token that is called ${JSON.stringify(name.slice(0, 20))}`, post('/api/v1/tokens', { name }), 'name'),
  ),
  invalid('a token for root', post('/api/v1/tokens', { name: 't', scope: 'root' }), 'scope'),
  invalid('a token for a second', post('/api/v1/tokens', { name: 't', expires_in_s: 1 }), 'expires_in_s'),
  invalid("a token with a secret of the caller's", post('/api/v1/tokens', { name: 't', secret: 'mine' }), 'secret'),
  [
    'delete of a token that is not there',
    { method: 'DELETE', path: '/api/v1/tokens/nothing' },
    404,
    'token_not_found',
    /nothing/,
  ],
]

describe.skipIf(!haveBinary)('bad input', () => {
  let daemon: Daemon
  beforeAll(async () => {
    daemon = await startDaemon({ fake: true, flags: ['--listen', '127.0.0.1:0'] })
    await seedFake(daemon)
    await createVm(daemon, { name: 'up', cmd: ['sleep', '1000'] })
    await createVm(daemon, { name: 'down', cmd: ['sleep', '1000'] })
    await daemon.client.call('vm.stop', { params: { name: 'down' }, body: {} })
    const state = new Database(join(daemon.state, 'state.db'))
    state.run('PRAGMA busy_timeout = 5000')
    state.run('DELETE FROM events WHERE seq <= 4') // as if a hundred thousand had come after them
    state.close()
  }, 30_000)
  afterAll(async () => {
    await clean(daemon)
  })

  /** All that a bad request could have changed. */
  const everything = async () => {
    const events: string[] = []
    for await (const event of daemon.client.sse('events', { query: { follow: false, after: 5 } }))
      events.push(event.data)
    return {
      vms: await daemon.client.call('vm.list', {}),
      images: await daemon.client.call('image.list', {}),
      kernels: await daemon.client.call('kernel.list', {}),
      tokens: await daemon.client.call('token.list', {}),
      events,
      processes: machinesOf(daemon.state).sort(),
      files: ['images', 'kernels', 'vms'].map((folder) => readdirSync(join(daemon.state, folder)).sort()),
    }
  }

  for (const [name, request, status, code, names] of CASES) {
    test(`${name} is ${status} ${code}`, async () => {
      const { json: problem, headers, ...answer } = await ask({ socketPath: daemon.socket }, request)

      expect({ status: answer.status, code: problem['code'], title: problem['title'] }).toEqual({
        status,
        code,
        title: expect.any(String) as string,
      })
      expect(headers['content-type']).toBe('application/problem+json')
      expect(problem).toMatchObject({
        type: `urn:aerie:fault:${code}`,
        status,
        error: problem['title'],
        request_id: headers['x-request-id'],
      })
      const said = `${String(problem['title'])} ${String(problem['hint'] ?? '')}`
      if (typeof names === 'string') expect(`${said} ${JSON.stringify(problem['errors'] ?? [])}`).toContain(names)
      else expect(said).toMatch(names)
      expect(said.length).toBeLessThan(3000)
      // A sentence of a helper is told as it is, and not behind the same words once more.
      expect((String(problem['title']).match(/\bCannot\b/g) ?? []).length).toBeLessThan(2)
    }, 15_000)
  }

  test('nothing of all that has changed anything', async () => {
    const before = await everything()
    for (const [, request] of CASES) await ask({ socketPath: daemon.socket }, request)

    const after = await everything()

    expect(after).toEqual(before)
    expect(before.vms.map((vm) => [vm.name, vm.status])).toEqual([
      ['up', 'running'],
      ['down', 'stopped'],
    ])
  }, 60_000)

  test('the log has no crash and no unhandled error, and an internal error none of these was', () => {
    const lines = daemon
      .log()
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as { level: number; msg: string; code?: string })

    expect(lines.filter((line) => line.level >= 50 || line.code === 'internal')).toEqual([])
  })

  describe('an exec over a WebSocket', () => {
    /** What a socket is told after these messages, and how it is closed. */
    const say = async (
      ...messages: (string | Uint8Array)[]
    ): Promise<{ told: Record<string, unknown>[]; closed: number }> => {
      await until(() => daemon.log().includes('aerie serves'))
      const { secret } = await daemon.client.call('token.create', {
        body: { name: `t${crypto.randomUUID()}`, scope: 'exec' },
      })
      const socket = new WebSocket(`ws://127.0.0.1:${portOf(daemon)}/api/v1/vms/up/exec`, {
        headers: { authorization: `Bearer ${secret}` },
      } as never)
      socket.binaryType = 'nodebuffer' as never
      const told: Record<string, unknown>[] = []
      socket.addEventListener('message', (message) => {
        const bytes = message.data as unknown as Buffer
        if (bytes[0] === 3) told.push(JSON.parse(bytes.subarray(1).toString('utf8')) as Record<string, unknown>)
      })
      socket.addEventListener('open', () => {
        for (const message of messages) socket.send(message)
      })
      const closed = await new Promise<number>((resolve) => {
        socket.addEventListener('close', (event) => {
          resolve(event.code)
        })
      })
      return { told, closed }
    }

    test('that begins with no JSON, or with no command, is told so', async () => {
      for (const [first, names] of [
        ['no json', 'no JSON'],
        ['{}', 'argv'],
        ['{"argv":[]}', 'argv'],
        ['{"argv":["x"],"shell":true}', 'shell'],
        ['null', ''],
        ['{"argv":["a\\u0000"]}', 'argv'],
      ] as const) {
        const { told, closed } = await say(first)

        expect({ first, told, closed }).toMatchObject({
          first,
          told: [{ type: 'error', code: 'request_invalid', message: expect.stringContaining(names) as string }],
          closed: 1000,
        })
      }
    })

    test('that begins with input, or says what to run twice, is closed', async () => {
      expect(await say(Buffer.from([0, 65]))).toEqual({ told: [], closed: 1008 })
      expect((await say('{"argv":["cat"],"stdin":true}', '{"argv":["id"]}')).closed).toBe(1008)
    })

    test('whose control message is no JSON costs its own connection', async () => {
      expect((await say('{"argv":["cat"],"stdin":true}', Buffer.from('\x03{'))).closed).toBe(1011)
      expect(await daemon.client.call('vm.exec', { params: { name: 'up' }, body: { argv: ['true'] } })).toMatchObject({
        exit_code: 0,
      })
    })

    test('that sends signals and sizes out of bounds goes on', async () => {
      const control = (message: object) => Buffer.concat([Buffer.from([3]), Buffer.from(JSON.stringify(message))])

      const { told, closed } = await say(
        '{"argv":["cat"],"stdin":true}',
        control({ type: 'signal', signal: 999 }),
        control({ type: 'signal', signal: 'KILL' }),
        control({ type: 'resize', cols: -5, rows: 1e9 }),
        control({ type: 'party' }),
        control({ type: 'eof' }),
      )

      expect(told.at(-1)).toMatchObject({ type: 'exit', code: 0 })
      expect(closed).toBe(1000)
    })
  })
})

const vmlinuz = process.env['AERIE_TEST_KERNEL']
test.skipIf(!haveBinary || vmlinuz === undefined || !existsSync(vmlinuz))(
  'a kernel without its modules is refused by what it lacks, whether or not a list tells',
  async () => {
    const daemon = await startDaemon({ fake: true })
    try {
      const version = /vmlinuz-(.+)$/.exec(vmlinuz ?? '')?.[1] ?? ''
      const list = { [`lib/modules/${version}/modules.builtin`]: 'kernel/fs/ext4/ext4.ko\n' }
      for (const more of [list, {}]) {
        const body = await new Bun.Archive({
          [`boot/vmlinuz-${version}`]: readFileSync(vmlinuz ?? ''),
          ...more,
        }).bytes()

        const answer = await ask({ socketPath: daemon.socket }, kernel(body))

        expect(answer).toMatchObject({
          status: 400,
          json: {
            code: 'kernel_module_missing',
            title: expect.stringContaining('virtio_blk') as string,
            hint: expect.stringContaining('modules') as string,
          },
        })
      }
      expect((await daemon.client.call('kernel.list', {})).length).toBeLessThanOrEqual(1)
    } finally {
      await clean(daemon)
    }
  },
  30_000,
)
