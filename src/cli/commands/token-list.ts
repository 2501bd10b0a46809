import { command } from '../command.ts'
import { sayAgo } from '../table.ts'

export default command({
  usage: '',
  flags: {},
  args: { min: 0, max: 0 },
  async run(context) {
    const tokens = await (await context.client()).call('token.list', {})
    await context.out.show(tokens, {
      table: () => ({
        columns: [
          { title: 'NAME' },
          { title: 'BEGINS' },
          { title: 'SCOPE' },
          { title: 'CREATED' },
          { title: 'LAST USED' },
          { title: 'EXPIRES' },
        ],
        rows: tokens.map((one) => [
          one.name,
          one.prefix,
          one.scope,
          sayAgo(one.created_at),
          one.last_used_at === null ? 'never' : sayAgo(one.last_used_at),
          one.expires_at ?? 'never',
        ]),
      }),
      name: () => tokens.map((one) => one.name),
    })
    return 0
  },
})
