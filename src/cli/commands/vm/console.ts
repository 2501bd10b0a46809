import { command } from '../../command.ts'
import { yes } from '../../flags.ts'
import { isTerminal, writeAll } from '../../stdio.ts'
import { stdin } from '../../stdin.ts'

const ESCAPE = 0x1d // ^]

export const console = command({
  usage: '[FLAGS] NAME',
  detail: 'The serial console, also of a guest whose agent does not answer. ^] leaves.',
  flags: { stdin: yes('Send what is typed; --no-stdin only looks') },
  args: { min: 1, max: 1, nouns: ['vm'] },
  async run(context, { flags, args }) {
    const client = await context.client()
    const wire = await client.raw('vm.console', { params: { name: args[0] ?? '' } })
    using raw = new DisposableStack()
    const typing = flags.stdin !== false
    const ours = typing && isTerminal(0) ? await context.programs.terminal() : undefined
    const terminal = ours !== undefined
    // In the background of a shell it is the shell that is typed at: then the console is only shown.
    const shares = ours !== undefined && !ours.foreground()
    if (ours && !shares) {
      context.out.note('^] leaves the console')
      raw.use(ours.raw())
    }
    const typed = async () => {
      for await (const bytes of stdin()) {
        const leave = terminal ? bytes.indexOf(ESCAPE) : -1
        await wire.send(leave < 0 ? bytes : bytes.subarray(0, leave))
        if (leave >= 0) return
      }
      // A pipe that has ended has said all; what the guest answers is still to come.
      if (!terminal) await new Promise<never>(() => undefined)
    }
    const shown = async () => {
      for await (const bytes of wire.bytes()) await writeAll(1, bytes)
    }
    try {
      await Promise.race(typing && !shares ? [shown(), typed()] : [shown()])
    } finally {
      wire.close()
    }
    return 0
  },
})
