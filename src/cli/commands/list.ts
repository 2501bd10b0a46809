import { command } from '../command.ts'
import { LIST_FLAGS, listQuery } from '../list-flags.ts'
import { vmTable } from '../vm-table.ts'

export default command({
  usage: '[FLAGS]',
  flags: LIST_FLAGS,
  args: { min: 0, max: 0 },
  async run(context, { flags }) {
    const client = await context.client()
    const vms = await client.call('vm.list', { query: listQuery(flags) })
    await context.out.show(vms, { table: () => vmTable(vms), name: () => vms.map((vm) => vm.name) })
    return 0
  },
})
