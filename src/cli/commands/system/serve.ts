import { command } from '../../command.ts'
import { bySchema, text, type Flag } from '../../flags.ts'

export const serve = command({
  usage: '[FLAGS]',
  detail: `Runs until it is told to end. Running vms outlive it, and the next one finds them.
Every flag is a setting, with the same name in aerie.toml and as AERIE_… in the environment.`,
  flags: {},
  args: { min: 0, max: 0 },
  moreFlags: async (programs) => ({
    config: text('Configuration file', 'FILE'),
    ...Object.fromEntries(
      Object.entries(await programs.settings()).map(([key, schema]): [string, Flag<unknown>] => [
        key,
        bySchema(schema, {}),
      ]),
    ),
  }),
  async run(context, { flags }) {
    const known = new Set(['config', ...Object.keys(await context.programs.settings())])
    return context.programs.serve(Object.fromEntries(Object.entries(flags).filter(([key]) => known.has(key))))
  },
})
