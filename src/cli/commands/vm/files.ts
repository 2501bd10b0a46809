import { command } from '../../command.ts'
import { fileTable } from './file-table.ts'
import { integer } from '../../flags.ts'

export const files = command({
  usage: '[FLAGS] NAME [PATH]',
  detail: '"aerie vm list" lists vms.',
  flags: { limit: integer('At most so many entries (1000)', 1, 10_000) },
  args: { min: 1, max: 2, nouns: ['vm', 'none'] },
  async run(context, { flags, args }) {
    const [name = '', path = '/'] = args
    const client = await context.client()
    const { entries, truncated } = await client.call('vm.files', {
      params: { name },
      query: { path, ...(flags.limit !== undefined && { limit: flags.limit }) },
    })
    await context.out.show(entries, { table: () => fileTable(entries), name: () => entries.map((one) => one.name) })
    if (truncated) context.out.warn(`"${path}" has more entries: see --limit`)
    return 0
  },
})
