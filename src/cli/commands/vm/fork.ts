import { VmFork } from '../../../contract/vm.ts'
import { command } from '../../command.ts'
import { EXIT } from '../../exit.ts'
import { plain } from '../../../lib/plain.ts'
import { defined, schemaFlags } from '../../schema-flags.ts'

const FIELDS = schemaFlags(VmFork, {
  omit: ['name'],
  more: {
    count: { short: 'n', help: 'How many clones; of more than one, NAME gets -1, -2 and so on behind it' },
    target_state: { as: 'state', help: 'What the clones shall be (what the vm is); stopped clones the disk alone' },
    metadata: { help: "A label, in place of the vm's own", short: 'l', aliases: ['label'] },
  },
})

export const fork = command({
  usage: '[FLAGS] VM [NAME]',
  detail:
    "Each clone goes on where the vm stands, as a machine of its own: name, disk, machine-id, random numbers. Prints the clones' names.",
  flags: FIELDS.flags,
  args: { min: 1, max: 2, nouns: ['vm', 'none'] },
  async run(context, { flags, args: [name = '', clone] }) {
    const client = await context.client()
    const { vms, failed } = await client.call('vm.fork', {
      params: { name },
      body: { ...FIELDS.said(flags), ...defined({ name: clone }) },
    })
    await context.out.show(
      { vms, failed },
      { table: () => vms.map((vm) => `${plain(vm.name)}\n`).join(''), name: () => vms.map((vm) => vm.name) },
    )
    for (const one of failed) context.out.warn(`${one.name}: ${one.message}`)
    return failed.length === 0 ? 0 : EXIT.internal
  },
})
