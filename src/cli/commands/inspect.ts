import { command } from '../command.ts'
import { showAll } from '../show-all.ts'

export default command({
  usage: 'NAME…',
  flags: {},
  args: { min: 1, max: 256, nouns: ['vm'] },
  detail:
    'Prints JSON (one object, or a list where several are named), unless --output says otherwise. Values of the environment are not shown.',
  async run(context, { args }) {
    const client = await context.client()
    return showAll(
      context,
      args,
      (name) => client.call('vm.get', { params: { name } }),
      (vm) => vm.name,
    )
  },
})
