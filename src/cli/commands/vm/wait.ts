import { WaitQuery } from '../../../contract/vm.ts'
import { Fault } from '../../../lib/fault.ts'
import { command } from '../../command.ts'
import { EXIT_TIMEOUT } from '../../exit.ts'
import { schemaFlags } from '../../schema-flags.ts'

const FIELDS = schemaFlags(WaitQuery, {
  more: { for: { help: 'What to wait for' }, timeout_s: { help: 'How long to wait', short: 't' } },
})

export const wait = command({
  usage: '[FLAGS] NAME',
  detail:
    'Waits until the vm has ended, or for what --for says. Prints the exit code of the workload, where there is one. Exit code 124: the time is over.',
  flags: FIELDS.flags,
  args: { min: 1, max: 1, nouns: ['vm'] },
  async run(context, { flags, args }) {
    const client = await context.client()
    const target = flags.for ?? 'exit'
    try {
      const vm = await client.call('vm.wait', {
        params: { name: args[0] ?? '' },
        query: { ...FIELDS.said(flags) },
      })
      await context.out.show(vm, {
        table: () => (vm.exit_code !== null && target !== 'ready' ? `${vm.exit_code}\n` : `${vm.status}\n`),
        name: () => [vm.name],
      })
      return 0
    } catch (error) {
      if (!(error instanceof Fault && error.code === 'wait_timeout')) throw error
      context.out.warn(error.message)
      return EXIT_TIMEOUT
    }
  },
})
