import { VmStart } from '../../../contract/vm.ts'
import { command } from '../../command.ts'
import { each } from '../../shapes.ts'
import { usageInvalid } from '../../flags.ts'
import { ENV_FLAGS, readEnv } from '../../guest-flags.ts'
import { defined, schemaFlags } from '../../schema-flags.ts'

const FIELDS = schemaFlags(VmStart, {
  omit: ['cmd', 'env'],
  more: { entrypoint: { help: 'Program instead of the one before' } },
})

export const start = command({
  usage: '[FLAGS] NAME… [-- COMMAND…]',
  detail: 'With a command, an entry point or variables the next run of the workload uses these.',
  flags: { ...ENV_FLAGS, ...FIELDS.flags },
  args: { min: 1, max: 256, nouns: ['vm'] },
  command: true,
  async run(context, { flags, args, rest }) {
    if (rest && args.length > 1)
      throw usageInvalid({ reason: 'Cannot start several vms with one command: name one vm' })
    const body = { ...FIELDS.said(flags), ...defined({ cmd: rest && [...rest], env: readEnv(flags, context.env) }) }
    const client = await context.client()
    return each(context, args, async (name) =>
      context.out.done(await client.call('vm.start', { params: { name }, body })),
    )
  },
})
