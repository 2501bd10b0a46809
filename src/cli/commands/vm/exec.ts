import { command } from '../../command.ts'
import { usageInvalid } from '../../flags.ts'
import { ENV_FLAGS, EXEC_FIELDS, readEnv, TERMINAL_FLAGS, ttyChoice } from '../../guest-flags.ts'
import { defined } from '../../schema-flags.ts'
import { EXIT_TIMEOUT } from '../../exit.ts'
import { beforeDeadline, chooseJoin, codeOf, stay } from '../../stay.ts'
import { terminalSize } from '../../stdio.ts'

/** How much later than the guest should have ended a command we stop waiting for the guest, ms. */
const GUEST_LATE_MS = 1000

export const exec = command({
  usage: '[FLAGS] NAME [--] COMMAND…',
  detail: `Runs a command in a running vm. When this program goes away, the command is ended.
Nothing of stdin is read without -i, as with docker exec; on a terminal -it is what you get, but in a background job.
Exit code: the command's own; 128+n where signal n ended it; 126, 127 as in a shell; 124 after --timeout; 125 for every fault of aerie.`,
  flags: {
    ...TERMINAL_FLAGS,
    ...ENV_FLAGS,
    ...EXEC_FIELDS.flags,
  },
  args: { min: 1, max: 1, nouns: ['vm'] },
  command: true,
  async run(context, { flags, args, rest = [] }) {
    if (rest.length === 0)
      throw usageInvalid({ reason: 'Cannot run nothing: there is no command', hint: 'aerie exec NAME -- COMMAND…' })
    const join = await chooseJoin({ ...flags, ...ttyChoice(flags) }, context.programs)
    const env = readEnv(flags, context.env)
    const client = await context.client()
    const params = { name: args[0] ?? '' }
    // The guest ends the command; the time of a guest that does not is over a little later.
    const deadline = flags.timeout === undefined ? undefined : Date.now() + Math.max(1, flags.timeout) + GUEST_LATE_MS
    const opening = client.process(
      'vm.exec.stream',
      { params },
      {
        argv: [...rest],
        tty: join.tty,
        stdin: join.stdin,
        ...(join.tty && terminalSize()),
        ...defined({ env }),
        ...EXEC_FIELDS.said(flags),
      },
    )
    const over = () => {
      context.out.warn(`the guest did not end the command after ${(flags.timeout ?? 0) / 1000} s: nobody waits for it`)
      return EXIT_TIMEOUT
    }
    const exec = await beforeDeadline(opening, deadline)
    if (exec === undefined) return over()
    const left = await stay(exec, {
      ...join,
      detachable: false,
      timeoutMs: deadline === undefined ? undefined : Math.max(1, deadline - Date.now()),
      probe: (signal) => client.call('vm.stat', { params, query: { path: '/' } }, { signal }),
      warn: (text) => {
        context.out.warn(text)
      },
    })
    if (left.how === 'gone') return left.exit
    if (left.how === 'timeout') return over()
    if (left.how !== 'ended') return 0
    if (left.message !== null) context.out.warn(left.message)
    return codeOf(left)
  },
})
