import { command } from '../../command.ts'
import { yes } from '../../flags.ts'
import { chooseJoin, codeOf, stay } from '../../stay.ts'
import { terminalSize } from '../../stdio.ts'
import { settled } from './settled.ts'

export const attach = command({
  usage: '[FLAGS] NAME',
  detail: `Joins the workload of a vm: its output from now on, your input, its exit code. ^P ^Q leaves a terminal, the workload goes on.
Nothing of stdin is read without -i where the workload has no terminal.
With --no-stdin you only look: ^C and SIGTERM end this program and are not sent to the workload.`,
  flags: {
    interactive: yes('Send stdin; where the workload has a terminal it is sent anyway', { short: 'i' }),
    stdin: yes('The same as --interactive; --no-stdin only looks'),
    replay: yes('Show what was said so far first'),
  },
  args: { min: 1, max: 1, nouns: ['vm'] },
  async run(context, { flags, args }) {
    const name = args[0] ?? ''
    const client = await context.client()
    const vm = await client.call('vm.get', { params: { name } })
    const join = {
      ...(await chooseJoin(flags, context.programs)),
      tty: vm.tty,
      stdin: flags.interactive ?? flags.stdin ?? vm.tty,
    }
    const params = { name: vm.uid }
    const exec = await client.process(
      'vm.attach',
      { params },
      { stdin: join.stdin, replay: flags.replay === true, ...(join.tty && terminalSize()) },
    )
    const left = await stay(exec, {
      ...join,
      detachable: join.tty,
      looks: (flags.interactive ?? flags.stdin) === false,
      probe: (signal) => client.call('vm.stat', { params, query: { path: '/' } }, { signal }),
      warn: (text) => {
        context.out.warn(text)
      },
    })
    if (left.how === 'gone') return left.exit
    if (left.how !== 'ended') return 0
    if (left.message !== null) context.out.warn(left.message)
    await settled(client, vm.uid)
    return codeOf(left)
  },
})
