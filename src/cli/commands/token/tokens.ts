import { TokenCreate } from '../../../contract/system.ts'
import { command } from '../../command.ts'
import { schemaFlags } from '../../schema-flags.ts'
import { inspecting, listing, onEach } from '../../shapes.ts'
import { sayAgo } from '../../table.ts'

const FIELDS = schemaFlags(TokenCreate, {
  omit: ['name'],
  more: {
    scope: { help: 'What it allows (read)' },
    expires_in_s: { as: 'expires', help: 'How long it is good (for ever)' },
  },
})

export const create = command({
  usage: '[FLAGS] NAME',
  detail: 'Prints the secret, once: it is kept as a hash only.',
  flags: FIELDS.flags,
  args: { min: 1, max: 1 },
  async run(context, { flags, args }) {
    const token = await (await context.client()).call('token.create', {
      body: {
        name: args[0] ?? '',
        ...FIELDS.said(flags),
      },
    })
    await context.out.show(token, { table: () => `${token.secret}\n`, name: () => [token.secret] })
    return 0
  },
})

export const list = listing({
  list: (client) => client.call('token.list', {}),
  table: (tokens) => ({
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
  nameOf: (token) => token.name,
})

export const inspect = inspecting('token', {
  get: (client, name) => client.call('token.get', { params: { name } }),
  nameOf: (token) => token.name,
})

export const remove = onEach('token', {
  async act(client, name) {
    await client.call('token.delete', { params: { name } })
    return { name }
  },
})
