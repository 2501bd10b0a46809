import { command } from '../command.ts'
import { showAll } from '../show-all.ts'

export default command({
  usage: 'NAME…',
  flags: {},
  args: { min: 1, max: 256, nouns: ['image'] },
  async run(context, { args }) {
    const client = await context.client()
    return showAll(
      context,
      args,
      (name) => client.call('image.get', { params: { name } }),
      (image) => image.name ?? image.digest,
    )
  },
})
