import type { Vm } from '../../../contract/vm.ts'
import { HOLDS_MACHINE } from '../../../contract/vm-state.ts'
import type { Command } from '../../command.ts'
import { yes, type Values } from '../../flags.ts'
import { listing } from '../../shapes.ts'
import { LIST_FLAGS, listQuery } from './list-flags.ts'
import { vmTable } from './vm-table.ts'

const nameOf = (vm: Vm): string => vm.name

const allVms = listing({
  flags: LIST_FLAGS,
  list: (client, flags) => client.call('vm.list', { query: listQuery(flags) }),
  table: vmTable,
  nameOf,
})

export const list: Command = {
  ...allVms,
  usage: '[FLAGS] [NAME [PATH]]',
  detail: 'With the name of a vm it lists a folder in there, as "aerie vm files" does.',
  args: { min: 0, max: 2, nouns: ['vm', 'none'] },
  async run(context, input) {
    if (input.args.length === 0) return allVms.run(context, input)
    const { showFiles } = await import('./files.ts')
    return showFiles(context, input.args, (input.flags as Values<typeof LIST_FLAGS>).limit)
  },
}

export const ps = listing({
  flags: { all: yes('Also vms that do not run', { short: 'a' }), ...LIST_FLAGS },
  list: (client, flags) => client.call('vm.list', { query: listQuery(flags, flags.all ? undefined : HOLDS_MACHINE) }),
  table: vmTable,
  nameOf,
})
