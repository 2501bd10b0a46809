import { TokenScope } from '../../contract/system.ts'
import { command } from '../command.ts'
import { bySchema, duration } from '../flags.ts'

export default command({
  usage: '[FLAGS] NAME',
  detail: 'Prints the secret, once: it is kept as a hash only.',
  flags: {
    scope: bySchema(TokenScope, { help: 'What it allows (read)' }),
    expires: duration('How long it is good (for ever)', 10 * 365 * 86_400_000),
  },
  args: { min: 1, max: 1 },
  async run(context, { flags, args }) {
    const token = await (await context.client()).call('token.create', {
      body: {
        name: args[0] ?? '',
        ...(flags.scope !== undefined && { scope: flags.scope }),
        ...(flags.expires !== undefined && { expires_in_s: Math.ceil(flags.expires / 1000) }),
      },
    })
    await context.out.show(token, { table: () => `${token.secret}\n`, name: () => [token.secret] })
    return 0
  },
})
