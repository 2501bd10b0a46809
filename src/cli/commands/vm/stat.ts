import { Type } from '@sinclair/typebox'
import { fault } from '../../../lib/fault.ts'
import { command } from '../../command.ts'
import { yes } from '../../flags.ts'
import { fileFields } from './file-table.ts'
import { renderFields } from '../../table.ts'

const pathMissing = fault(
  'guest_path_not_found',
  'not_found',
  { path: Type.String() },
  (d) => `Cannot find "${d.path}" in the vm`,
)

export const stat = command({
  usage: '[FLAGS] NAME PATH',
  flags: { follow: yes('Of a symbolic link show what it leads to', { short: 'L' }) },
  args: { min: 2, max: 2, nouns: ['vm', 'none'] },
  async run(context, { flags, args }) {
    const [name = '', path = ''] = args
    const client = await context.client()
    const stat = await client.call('vm.stat', {
      params: { name },
      query: { path, ...(flags.follow && { follow_links: true }) },
    })
    if (!stat.exists) throw pathMissing({ path })
    await context.out.show(stat, {
      table: () => renderFields(fileFields(path, stat), context.out.look),
      name: () => [path],
    })
    return 0
  },
})
