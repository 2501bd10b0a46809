import { command } from '../command.ts'
import { each } from '../each.ts'

export default command({
  usage: 'NAME…',
  flags: {},
  args: { min: 1, max: 256, nouns: ['vm'] },
  async run(context, { args }) {
    const client = await context.client()
    return each(context, args, async (name) => context.out.done(await client.call('vm.pause', { params: { name } })))
  },
})
