import { lstatSync, mkdtempSync, readdirSync, readlinkSync, rmSync, statSync } from 'node:fs'
import { spawn } from 'node:child_process'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { CHANNEL, type ExecControl, type ExecStart } from '../../src/contract/exec.ts'
import type { FileStat } from '../../src/contract/files.ts'
import { RAW_END } from '../../src/contract/forward.ts'
import type { Vm } from '../../src/contract/vm.ts'
import type { VmCreate } from '../../src/contract/vm-spec.ts'
import { newId } from '../../src/lib/id.ts'

interface Wire {
  readonly path: string
  readonly query: URLSearchParams
  session?: (message: string | Uint8Array) => void
  closed?: () => void
  drained?: () => void
}
type Ws = Bun.ServerWebSocket<Wire>
export type Answer = (request: Request, path: string) => Response | Promise<Response> | undefined

export const WINDOW = 262_144

const problem = (status: number, code: string, title: string, more: object = {}): Response =>
  Response.json(
    { type: `urn:${code}`, title, status, error: title, code, ...more },
    { status, headers: { 'content-type': 'application/problem+json' } },
  )

/**
 * A daemon that follows the contract, with processes and a folder of this host in place of guests: what the client and
 * the command line are tested against where no guest is needed.
 */
export class FakeDaemon implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'aerie-fake-'))
  readonly socket = join(this.folder, 'd.sock')
  /** The root of every guest's files. */
  readonly guest = mkdtempSync(join(tmpdir(), 'aerie-guest-'))
  readonly vms = new Map<string, Vm & { readonly body: VmCreate }>()
  readonly requests: { readonly method: string; readonly path: string; readonly headers: Headers }[] = []
  readonly signals: number[] = []
  /** How much stdin the commands were sent and had not yet taken, at most. */
  stdinPendingMax = 0
  resized: (readonly [number, number])[] = []
  readonly #server: Bun.Server<Wire>

  /** @param answer  goes before everything else; undefined leaves the request to the daemon */
  constructor(answer: Answer = () => undefined) {
    this.#server = Bun.serve<Wire>({
      unix: this.socket,
      maxRequestBodySize: 4 * 2 ** 30,
      fetch: async (request, server) => {
        const url = new URL(request.url)
        const path = decodeURIComponent(url.pathname)
        this.requests.push({ method: request.method, path: path + url.search, headers: request.headers })
        const own = await answer(request, path)
        if (own) return own
        const wanted = /^\/(?:api|ws)\/v1\/vms\/([^/]+)/.exec(path)?.[1]
        if (wanted !== undefined && !this.find(wanted))
          return problem(404, 'vm_not_found', `Cannot find vm "${wanted}"`, {
            name: wanted,
            hint: 'List them with "aerie ls"',
          })
        if (request.headers.get('upgrade') === 'websocket') {
          return server.upgrade(request, { data: { path, query: url.searchParams } })
            ? undefined
            : problem(400, 'upgrade_failed', 'Cannot upgrade')
        }
        return this.#route(request, path, url.searchParams)
      },
      websocket: {
        backpressureLimit: 64 * 2 ** 20,
        open: (ws) => {
          this.#open(ws)
        },
        message: (ws, message) => {
          ws.data.session?.(message)
        },
        drain: (ws) => {
          ws.data.drained?.()
        },
        close: (ws) => {
          ws.data.closed?.()
        },
      },
    })
  }

  get endpoint() {
    return { kind: 'unix' as const, path: this.socket }
  }

  find(name: string) {
    return [...this.vms.values()].find((vm) => vm.name === name || vm.uid === name)
  }

  add(body: VmCreate & { readonly name: string }): Vm {
    const now = new Date().toISOString()
    const vm = {
      id: this.vms.size + 1,
      uid: newId('vm'),
      name: body.name,
      status: 'running' as const,
      status_message: null,
      runtime: 'fake',
      plugin: null,
      image: body.image ?? 'base',
      image_digest: `sha256:${'0'.repeat(64)}`,
      kernel: '6.1',
      hypervisor: 'fake',
      pid: 1,
      ip_address: '',
      mac_address: '',
      vsock_cid: 3,
      cpu_cores: body.cpu_cores ?? 1,
      memory_mb: body.memory_mb ?? 512,
      disk_mb: 10_240,
      shm_size_mb: body.shm_size_mb ?? 64,
      network_bandwidth_download: body.network_bandwidth_download ?? 0,
      network_bandwidth_upload: body.network_bandwidth_upload ?? 0,
      disk_io_bps: body.disk_io_bps ?? 0,
      kernel_cmdline: '',
      serial_socket: '',
      walls: null,
      network: { mode: 'vsock' as const },
      nics: [],
      publish: [],
      port: null,
      tty: body.tty ?? false,
      auto_remove: body.auto_remove ?? false,
      entrypoint: body.entrypoint ?? null,
      cmd: body.cmd ?? null,
      env_names: Object.keys(body.env ?? {}),
      metadata: body.metadata ?? {},
      stop_timeout_s: 5,
      forkable: false,
      forked_from: null,
      exit_code: null,
      exit_signal: null,
      exit_message: null,
      boot_ms: 1,
      gen: 1,
      created_at: now,
      updated_at: now,
      started_at: now,
      stopped_at: null,
      body,
    }
    this.vms.set(vm.uid, vm)
    return vm
  }

  async #route(request: Request, path: string, query: URLSearchParams): Promise<Response> {
    const [, name = '', verb = ''] = /^\/api\/v1\/vms\/([^/]+)\/?(.*)$/.exec(path) ?? []
    const vm = this.find(name)
    if (path === '/healthz') return Response.json({ status: 'ok' })
    if (path === '/api/v1/vms' && request.method === 'POST') {
      const body = (await request.json()) as VmCreate
      if (this.find(body.name ?? ''))
        return problem(409, 'vm_exists', `Cannot create vm "${body.name}": the name is taken`)
      return Response.json(this.add({ ...body, name: body.name ?? 'unnamed' }), { status: 201 })
    }
    if (path === '/api/v1/vms') return Response.json([...this.vms.values()])
    if (vm && verb === '' && request.method === 'GET') return Response.json(vm)
    if (vm && verb === '' && request.method === 'DELETE') {
      this.vms.delete(vm.uid)
      return new Response(null, { status: 204 })
    }
    if (vm && verb === 'stat')
      return Response.json(this.#stat(join(this.guest, query.get('path') ?? ''), query.get('follow_links') === 'true'))
    if (vm && verb === 'files' && request.method === 'PUT') {
      const tar = Bun.spawn(['tar', '-xpf', '-', '-C', join(this.guest, query.get('path') ?? '')], {
        stdin: request,
        stderr: 'pipe',
      })
      if ((await tar.exited) !== 0) return problem(400, 'archive_invalid', await new Response(tar.stderr).text())
      return Response.json({ entries: 1, bytes: 1 })
    }
    if (vm && verb === 'files') {
      const real = join(this.guest, query.get('path') ?? '')
      const parts = real.split('/')
      return new Response(
        Bun.spawn(['tar', '-cf', '-', '-C', parts.slice(0, -1).join('/'), parts.at(-1) ?? '.'], { stderr: 'ignore' })
          .stdout,
      )
    }
    if (vm && verb === 'list') {
      const folder = join(this.guest, query.get('path') ?? '')
      return Response.json({
        entries: readdirSync(folder).map((entry) => ({ name: entry, ...this.#stat(join(folder, entry), false) })),
        truncated: false,
      })
    }
    return problem(404, 'route_not_found', `Cannot find ${request.method} ${path}`)
  }

  #stat(path: string, follow: boolean): FileStat {
    const stat = (follow ? statSync : lstatSync)(path, { throwIfNoEntry: false })
    return {
      exists: stat !== undefined,
      is_dir: stat?.isDirectory() ?? false,
      is_file: stat?.isFile() ?? false,
      is_symlink: stat?.isSymbolicLink() ?? false,
      link_target: stat?.isSymbolicLink() ? readlinkSync(path) : null,
      mode: (stat?.mode ?? 0) & 0o7777,
      size: stat?.size ?? 0,
      uid: 0,
      gid: 0,
      mtime_ms: Math.floor(stat?.mtimeMs ?? 0),
    }
  }

  #open(ws: Ws): void {
    const vm = this.find(/\/vms\/([^/]+)\//.exec(ws.data.path)?.[1] ?? '')
    if (ws.data.path.endsWith('/forward')) {
      this.#forward(ws)
      return
    }
    ws.data.session = (first) => {
      const start = JSON.parse(String(first)) as ExecStart
      const argv = ws.data.path.endsWith('/attach') ? [...(vm?.entrypoint ?? []), ...(vm?.cmd ?? [])] : start.argv
      this.#exec(ws, { ...start, argv, tty: start.tty ?? vm?.tty ?? false })
    }
  }

  #exec(ws: Ws, start: ExecStart): void {
    const frame = (channel: number, bytes: Uint8Array) => Buffer.concat([Buffer.of(channel), bytes])
    const control = (message: ExecControl) => {
      ws.send(frame(CHANNEL.control, Buffer.from(JSON.stringify(message))))
    }
    if (start.tty) {
      this.#terminal(ws, start, control)
      return
    }
    const child = spawn(start.argv[0] ?? '', start.argv.slice(1), {
      stdio: 'pipe',
      env: { PATH: process.env['PATH'], ...start.env },
    })
    child.stdin.on('error', () => undefined) // it reads no more
    child.on('error', () => undefined) // said below
    if (child.pid === undefined) {
      control({ type: 'exit', code: 127, signal: null, message: `Cannot find "${start.argv[0]}"` })
      ws.close()
      return
    }
    control({ type: 'started', pid: child.pid, tty: start.tty ?? false })
    control({ type: 'window', bytes: WINDOW })
    const pump = async (channel: number, stream: AsyncIterable<Uint8Array>) => {
      for await (const bytes of stream) {
        if (ws.readyState !== 1) return
        if (ws.send(frame(channel, bytes)) === -1)
          await new Promise<void>((resolve) => {
            ws.data.drained = resolve
            ws.data.closed = resolve
          })
      }
    }
    const pumps = [pump(CHANNEL.stdout, child.stdout), pump(CHANNEL.stderr, child.stderr)]
    let pending = 0
    let chain = Promise.resolve()
    if (!start.stdin) child.stdin.end()
    ws.data.closed = () => {
      child.kill('SIGHUP')
    }
    ws.data.session = (message) => {
      if (typeof message === 'string') return
      const bytes = Uint8Array.from(message.subarray(1))
      if (message[0] === CHANNEL.stdin) {
        pending += bytes.length
        this.stdinPendingMax = Math.max(this.stdinPendingMax, pending)
        chain = chain.then(async () => {
          await new Promise<void>((resolve) => {
            child.stdin.write(bytes, () => {
              resolve()
            })
          })
          pending -= bytes.length
          control({ type: 'window', bytes: bytes.length })
        })
      } else {
        const word = JSON.parse(Buffer.from(bytes).toString()) as ExecControl
        if (word.type === 'eof')
          chain = chain.then(() => {
            child.stdin.end()
          })
        if (word.type === 'signal') {
          this.signals.push(word.signal)
          child.kill(word.signal)
        }
        if (word.type === 'resize') this.resized.push([word.cols, word.rows])
      }
    }
    child.on('close', (code, name) => {
      void Promise.all(pumps).then(() => {
        const signal = name === null ? null : constants.signals[name]
        ws.data.closed = () => undefined
        control({ type: 'exit', code: signal === null ? (code ?? 0) : 128 + signal, signal, message: null })
        ws.close()
      })
    })
  }

  /** The same with a terminal of the host in the guest's place. */
  #terminal(ws: Ws, start: ExecStart, control: (message: ExecControl) => void): void {
    const child = Bun.spawn(start.argv, {
      env: { PATH: process.env['PATH'], TERM: 'xterm', ...start.env },
      terminal: {
        cols: start.cols ?? 80,
        rows: start.rows ?? 24,
        data: (_, bytes) => {
          ws.send(Buffer.concat([Buffer.of(CHANNEL.stdout), bytes]))
        },
      },
    })
    control({ type: 'started', pid: child.pid, tty: true })
    control({ type: 'window', bytes: WINDOW })
    ws.data.closed = () => {
      child.kill('SIGHUP')
    }
    ws.data.session = (message) => {
      if (typeof message === 'string') return
      if (message[0] === CHANNEL.stdin) child.terminal?.write(message.subarray(1))
      if (message[0] !== CHANNEL.control) return
      const word = JSON.parse(Buffer.from(message.subarray(1)).toString()) as ExecControl
      if (word.type === 'resize') {
        this.resized.push([word.cols, word.rows])
        child.terminal?.resize(word.cols, word.rows)
      }
      if (word.type === 'signal') {
        this.signals.push(word.signal)
        child.kill(word.signal)
      }
    }
    void child.exited.then((code) => {
      ws.data.closed = () => undefined
      control({ type: 'exit', code, signal: null, message: null })
      ws.close()
    })
  }

  #forward(ws: Ws): void {
    const port = Number(ws.data.query.get('port'))
    let waiting: (string | Uint8Array)[] = []
    ws.data.session = (message) => {
      waiting.push(message)
    }
    Bun.connect({
      hostname: '127.0.0.1',
      port,
      allowHalfOpen: true,
      socket: {
        open(socket) {
          ws.data.session = (message) => {
            if (typeof message === 'string') return
            if (message.length === 0) {
              socket.shutdown()
              return
            }
            const rest = message.subarray(socket.write(message))
            if (rest.length === 0) return
            ws.pause()
            let left = Uint8Array.from(rest)
            const more = () => {
              left = left.subarray(socket.write(left))
              if (left.length > 0) setTimeout(more, 1)
              else ws.resume()
            }
            more()
          }
          for (const message of waiting) ws.data.session(message)
          waiting = []
          ws.data.closed = () => {
            socket.terminate()
          }
        },
        data(_, bytes) {
          ws.send(bytes)
        },
        end() {
          ws.send(RAW_END)
        },
        close() {
          ws.close()
        },
      },
    }).catch(() => {
      ws.close(
        1011,
        JSON.stringify({
          code: 'guest_refused',
          message: `Nothing "listens" on port ${port}${' at all'.repeat(20)}`,
        }).slice(0, 120),
      )
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.stop(true)
    rmSync(this.folder, { recursive: true, force: true })
    rmSync(this.guest, { recursive: true, force: true })
  }
}
