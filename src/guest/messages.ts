import { Type, type Static, type TSchema } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { FileList, FileStat } from '../contract/files.ts'
import { VmStats } from '../contract/stats.ts'
import { agentUnavailable } from '../hypervisor/errors.ts'
import { FrameError } from './frames.ts'

/*
 * What the agent says, as far as the host reads it. A guest belongs to its user, who may have put anything in the
 * agent's place: nothing of this goes into a row or an answer before it has its shape. Fields that are not named here
 * are dropped: a newer agent may say more.
 */

const Text = Type.String()
const orNull = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()])
const ExitCode = Type.Integer({ minimum: -(2 ** 31), maximum: 2 ** 31 - 1 })
const Signal = Type.Integer({ minimum: 0, maximum: 64 })
const Offset = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER })
const Milliseconds = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER })

/** The most events of one boot: each costs the host a synced write, and a hostile guest may send any number. */
export const EVENTS_MAX = 10_000
const seq = Type.Integer({ minimum: 1, maximum: EVENTS_MAX })

export const AgentEvent = Type.Union([
  Type.Object({ seq, type: Type.Literal('ready'), boot_ms: Milliseconds }),
  Type.Object({ seq, type: Type.Literal('started'), pid: Type.Integer() }),
  Type.Object({
    seq,
    type: Type.Literal('exited'),
    code: ExitCode,
    signal: orNull(Signal),
    oom: Type.Boolean(),
    message: orNull(Text),
  }),
  Type.Object({ seq, type: Type.Literal('failed'), stage: Text, message: Text }),
  Type.Object({ seq, type: Type.Literal('button') }),
])
export type AgentEvent = Static<typeof AgentEvent>

/** The last frame of exec and attach. */
export const ExitMessage = Type.Object({ code: ExitCode, signal: orNull(Signal), message: orNull(Text) })

export const ANSWERS = {
  stat: FileStat,
  list: FileList,
  metrics: Type.Omit(VmStats, ['name', 'network', 'host']),
  copyIn: Type.Object({ entries: Type.Integer(), bytes: Type.Integer() }),
  copyOut: Type.Object({ name: Type.String({ maxLength: 4096 }), is_dir: Type.Boolean() }),
  logs: Type.Object({ oldest: Offset, next: Offset }),
  exec: Type.Object({ pid: Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1 }) }),
  attach: Type.Object({ tty: Type.Boolean(), released: Type.Optional(Type.Boolean()) }),
  identity: Type.Object({}),
} as const

/** Reads a body by its schema. @throws FrameError where it does not have the shape */
export const readAs = <S extends TSchema>(schema: S, body: unknown): Static<S> => {
  const cleaned = Value.Clean(schema, body)
  const wrong = Value.Errors(schema, cleaned).First()
  if (wrong)
    throw new FrameError(
      'frame_payload_invalid',
      `the agent's ${wrong.path === '' ? 'message' : wrong.path.slice(1)} is wrong: ${wrong.message}`,
    )
  return cleaned as Static<S>
}

/** Reads the agent's `ok` to a question. @throws `agent_unavailable` where it does not have the shape */
export const answerOf = <K extends keyof typeof ANSWERS>(kind: K, body: unknown): Static<(typeof ANSWERS)[K]> => {
  try {
    return readAs(ANSWERS[kind], body)
  } catch (error) {
    throw agentUnavailable({ reason: 'its answer has another shape' }, error)
  }
}
