import { command, flagsOf } from '../../command.ts'
import { findEntry } from '../../commands.ts'
import { nounOf } from '../../nouns.ts'
import { usageInvalid, yes } from '../../flags.ts'
import { commandHelp, everything, groupHelp, overview } from '../../help.ts'

export const help = command({
  usage: '[--all] [COMMAND]',
  flags: { all: yes('Every command with every flag') },
  args: { min: 0, max: 2 },
  async run(context, { flags, args }) {
    const name = args.join(' ')
    const entry = findEntry(name)
    if (flags.all) await context.out.help(await everything(context.programs))
    else if (entry) {
      const it = await entry.load()
      await context.out.help(commandHelp(entry, it, await flagsOf(it, context.programs)))
    } else if (nounOf(name)) await context.out.help(groupHelp(name))
    else if (name === '') await context.out.help(overview())
    else
      throw usageInvalid({
        reason: `Cannot help with "${name}": there is no such command`,
        hint: 'See "aerie help --all"',
      })
    return 0
  },
})
