import { command } from '../command.ts'
import { each } from '../each.ts'

export default command({
  usage: 'NAME…',
  flags: {},
  args: { min: 1, max: 256, nouns: ['token'] },
  async run(context, { args }) {
    const client = await context.client()
    return each(context, args, async (name) => {
      await client.call('token.delete', { params: { name } })
      await context.out.done({ name })
    })
  },
})
