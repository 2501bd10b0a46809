import { command } from '../../command.ts'
import { each } from '../../shapes.ts'
import { text, usageInvalid } from '../../flags.ts'
import { ENV_FLAGS, readEnv } from '../../guest-flags.ts'
import { readArgv } from '../../vm-flags.ts'

export const start = command({
  usage: '[FLAGS] NAME… [-- COMMAND…]',
  detail: 'With a command, an entry point or variables the next run of the workload uses these.',
  flags: { ...ENV_FLAGS, entrypoint: text('Program instead of the one before', 'PROGRAM') },
  args: { min: 1, max: 256, nouns: ['vm'] },
  command: true,
  async run(context, { flags, args, rest }) {
    if (rest && args.length > 1)
      throw usageInvalid({ reason: 'Cannot start several vms with one command: name one vm' })
    const env = readEnv(flags, context.env)
    const body = {
      ...(rest && { cmd: [...rest] }),
      ...(env && { env }),
      ...(flags.entrypoint !== undefined && { entrypoint: readArgv('entrypoint', flags.entrypoint) }),
    }
    const client = await context.client()
    return each(context, args, async (name) =>
      context.out.done(await client.call('vm.start', { params: { name }, body })),
    )
  },
})
