import { FORKS_MAX } from '../../../contract/vm.ts'
import { command } from '../../command.ts'
import { EXIT } from '../../exit.ts'
import { integer, list, word } from '../../flags.ts'
import { plain } from '../../../lib/plain.ts'
import { readMetadata } from '../../vm-flags.ts'

export const fork = command({
  usage: '[FLAGS] VM [NAME]',
  detail:
    "Each clone goes on where the vm stands, as a machine of its own: name, disk, machine-id, random numbers. Prints the clones' names.",
  flags: {
    count: integer('How many clones; of more than one, NAME gets -1, -2 and so on behind it (1)', 1, FORKS_MAX, {
      short: 'n',
    }),
    state: word(
      ['running', 'standby', 'stopped'],
      'What the clones shall be (what the vm is); stopped clones the disk alone',
    ),
    metadata: list("A label, in place of the vm's own", 'KEY=VALUE', { short: 'l', aliases: ['label'] }),
  },
  args: { min: 1, max: 2, nouns: ['vm', 'none'] },
  async run(context, { flags, args: [name = '', clone] }) {
    const client = await context.client()
    const { vms, failed } = await client.call('vm.fork', {
      params: { name },
      body: {
        ...(clone !== undefined && { name: clone }),
        ...(flags.count !== undefined && { count: flags.count }),
        ...(flags.state !== undefined && { target_state: flags.state }),
        ...(flags.metadata && { metadata: readMetadata(flags.metadata) }),
      },
    })
    await context.out.show(
      { vms, failed },
      { table: () => vms.map((vm) => `${plain(vm.name)}\n`).join(''), name: () => vms.map((vm) => vm.name) },
    )
    for (const one of failed) context.out.warn(`${one.name}: ${one.message}`)
    return failed.length === 0 ? 0 : EXIT.internal
  },
})
