import { Type, type Static } from '@sinclair/typebox'
import { ARGUMENTS_JSON_MAX, CommandArgv, Env, GuestUser } from './guest.ts'
import { defaulted, named } from './schema.ts'
import { oneOf, operation } from './operation.ts'
import { RUNNING_VM, VmRef } from './vm-ref.ts'

export const ExecStart = named(
  'ExecStart',
  Type.Object(
    {
      argv: CommandArgv,
      env: Type.Optional(Env),
      cwd: Type.Optional(
        Type.String({
          minLength: 1,
          maxLength: 4096,
          pattern: '^[^\\u0000]+$',
          description: "Folder that the command starts in, relative to the workload's own; that one where it is absent",
        }),
      ),
      user: Type.Optional(GuestUser),
      tty: defaulted(Type.Boolean(), false),
      cols: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535 })),
      rows: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535 })),
      stdin: defaulted(
        Type.Boolean({ description: 'Whether stdin will be sent; else the process reads end of file' }),
        false,
      ),
      timeout_ms: Type.Optional(Type.Integer({ minimum: 1, maximum: 2 ** 31 - 1 })),
    },
    { additionalProperties: false },
  ),
)
export type ExecStart = Static<typeof ExecStart>

/** The first message of an attach. */
export const AttachStart = named(
  'AttachStart',
  Type.Object(
    {
      stdin: defaulted(Type.Boolean(), false),
      replay: defaulted(Type.Boolean({ description: 'Send what the workload has said so far first' }), false),
      cols: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535 })),
      rows: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535 })),
    },
    { additionalProperties: false },
  ),
)
export type AttachStart = Static<typeof AttachStart>

/**
 * Exec and attach on one WebSocket: the first message is text (`ExecStart` or `AttachStart`), every later one is
 * binary, a channel byte and the rest. `control` is JSON, `ExecControl`. A client sends as many bytes of stdin as the
 * `window` messages add up to, the first of which comes with `started`: so a signal is never stuck behind input that
 * nobody reads.
 */
export const CHANNEL = { stdin: 0, stdout: 1, stderr: 2, control: 3 } as const
export type ExecControl =
  // from the server
  | { readonly type: 'started'; readonly pid: number | null; readonly tty: boolean }
  | { readonly type: 'window'; readonly bytes: number }
  | { readonly type: 'exit'; readonly code: number; readonly signal: number | null; readonly message: string | null }
  | { readonly type: 'error'; readonly code: string; readonly message: string; readonly hint?: string }
  // from the client
  | { readonly type: 'resize'; readonly cols: number; readonly rows: number }
  | { readonly type: 'signal'; readonly signal: number }
  | { readonly type: 'eof' }

/** An exec for programs that want one answer: output up to 1 MiB a stream, base64 where it is no UTF-8. */
export const ExecResult = named(
  'ExecResult',
  Type.Object({
    exit_code: Type.Integer(),
    signal: Type.Union([Type.Integer(), Type.Null()]),
    stdout: Type.String(),
    stderr: Type.String(),
    encoding: oneOf('utf8', 'base64'),
    truncated: Type.Boolean(),
  }),
)
export const ExecRun = named(
  'ExecRun',
  Type.Composite(
    [
      Type.Omit(ExecStart, ['tty', 'cols', 'rows', 'stdin']),
      Type.Object({ input: Type.Optional(Type.String({ maxLength: 1_048_576, description: 'stdin, UTF-8' })) }),
    ],
    { additionalProperties: false },
  ),
)

const tags = ['vm'] as const

export const execOperations = {
  'vm.exec': operation({
    method: 'POST',
    path: '/api/v1/vms/:name/exec',
    detail: { tags, summary: 'Run a command and answer with its output' },
    params: VmRef,
    body: ExecRun,
    bodyMax: ARGUMENTS_JSON_MAX,
    response: { 200: ExecResult },
    faults: [...RUNNING_VM, 'guest_path_not_found', 'guest_user_not_found', 'guest_refused'],
    scope: 'exec',
  }),
  'vm.exec.stream': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/exec',
    detail: { tags, summary: 'Run a command over one WebSocket' },
    params: VmRef,
    response: {},
    faults: RUNNING_VM,
    scope: 'exec',
    stream: 'websocket',
    socket: { kind: 'process', start: ExecStart },
  }),
  'vm.attach': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/attach',
    detail: { tags, summary: 'Attach to the workload over one WebSocket' },
    params: VmRef,
    response: {},
    faults: RUNNING_VM,
    scope: 'exec',
    stream: 'websocket',
    socket: { kind: 'process', start: AttachStart },
  }),
} as const
