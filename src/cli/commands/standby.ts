import { command } from '../command.ts'
import { each } from '../each.ts'

export default command({
  usage: 'NAME…',
  flags: {},
  args: { min: 1, max: 256, nouns: ['vm'] },
  detail: 'Moves the memory to disk and ends the machine; `aerie restore` runs it on from where it stood.',
  async run(context, { args }) {
    const client = await context.client()
    return each(context, args, async (name) => context.out.done(await client.call('vm.standby', { params: { name } })))
  },
})
