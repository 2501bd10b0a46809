import { command } from '../command.ts'
import { each } from '../each.ts'
import { STOP_FLAGS, stopBody } from '../stop-flags.ts'

export default command({
  usage: '[FLAGS] NAME…',
  flags: STOP_FLAGS,
  args: { min: 1, max: 256, nouns: ['vm'] },
  detail: 'Asks the guest, then presses its power button, then ends the machine.',
  async run(context, { flags, args }) {
    const client = await context.client()
    const body = stopBody(flags)
    return each(context, args, async (name) =>
      context.out.done(await client.call('vm.stop', { params: { name }, body })),
    )
  },
})
