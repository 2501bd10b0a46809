import { command, type Context } from '../../command.ts'
import { integer } from '../../flags.ts'
import { fileTable } from './file-table.ts'

/** Lists a folder of a vm. */
export const showFiles = async (
  context: Context,
  [name = '', path = '/']: readonly string[],
  limit: number | undefined,
): Promise<number> => {
  const client = await context.client()
  const { entries, truncated } = await client.call('vm.files', {
    params: { name },
    query: { path, ...(limit !== undefined && { limit }) },
  })
  await context.out.show(entries, { table: () => fileTable(entries), name: () => entries.map((one) => one.name) })
  if (truncated) context.out.warn(`"${path}" has more entries: see --limit`)
  return 0
}

export const files = command({
  usage: '[FLAGS] NAME [PATH]',
  flags: { limit: integer('At most so many entries (1000)', 1, 10_000) },
  args: { min: 1, max: 2, nouns: ['vm', 'none'] },
  run: (context, { flags, args }) => showFiles(context, args, flags.limit),
})
