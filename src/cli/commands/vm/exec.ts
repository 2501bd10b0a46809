import { command } from '../../command.ts'
import { duration, usageInvalid } from '../../flags.ts'
import { ENV_FLAGS, readEnv, TERMINAL_FLAGS, ttyChoice, USER_FLAGS } from '../../guest-flags.ts'
import { chooseJoin, codeOf, stay } from '../../stay.ts'
import { terminalSize } from '../../stdio.ts'

export const exec = command({
  usage: '[FLAGS] NAME [--] COMMAND…',
  detail: `Runs a command in a running vm. When this program goes away, the command is ended.
Exit code: the command's own; 128+n where signal n ended it; 126, 127 as in a shell; 124 after --timeout; 125 for every fault of aerie.`,
  flags: {
    ...TERMINAL_FLAGS,
    ...ENV_FLAGS,
    ...USER_FLAGS,
    timeout: duration('End the command after so long, with code 124', 2 ** 31 - 1),
  },
  args: { min: 1, max: 1, nouns: ['vm'] },
  command: true,
  async run(context, { flags, args, rest = [] }) {
    if (rest.length === 0)
      throw usageInvalid({ reason: 'Cannot run nothing: there is no command', hint: 'aerie exec NAME -- COMMAND…' })
    const join = chooseJoin({ ...flags, ...ttyChoice(flags) })
    const env = readEnv(flags, context.env)
    const client = await context.client()
    const exec = await client.exec(
      { params: { name: args[0] ?? '' } },
      {
        argv: [...rest],
        tty: join.tty,
        stdin: join.stdin,
        ...(join.tty && terminalSize()),
        ...(env && { env }),
        ...(flags.workdir !== undefined && { cwd: flags.workdir }),
        ...(flags.user !== undefined && { user: flags.user }),
        ...(flags.timeout !== undefined && { timeout_ms: Math.max(1, flags.timeout) }),
      },
    )
    const left = await stay(exec, { ...join, detachable: false, rawTerminal: context.programs.rawTerminal })
    if (left.how === 'gone') return left.exit
    if (left.how !== 'ended') return 0
    if (left.message !== null) context.out.warn(left.message)
    return codeOf(left)
  },
})
