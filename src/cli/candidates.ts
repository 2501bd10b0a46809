import { COMMANDS, findEntry } from './commands.ts'
import { flagsOf, GLOBAL_FLAGS, type Programs } from './command.ts'
import { NOUNS, nounOf, type ArgumentNoun } from './nouns.ts'
import { kebab, parseFlags, type Flag, type Flags } from './flags.ts'
import { splitName } from './cli.ts'

/** Stands for "names of files", which the shell knows better. */
export const FILES = ':file'

const named = (flags: Flags, word: string): Flag<unknown> | undefined => {
  for (const [key, flag] of Object.entries(flags)) {
    if (
      word === `--${kebab(key)}` ||
      flag.aliases?.some((alias) => word === `--${alias}`) ||
      (flag.short !== undefined && word === `-${flag.short}`)
    )
      return flag
  }
  return undefined
}

/** Lists what may stand where the last of these words is being typed. */
export const candidates = async (
  words: readonly string[],
  programs: Programs,
  names: (noun: ArgumentNoun) => Promise<readonly string[]>,
): Promise<readonly string[]> => {
  const typed = words.at(-1) ?? ''
  const before = words.slice(0, -1)
  const fitting = (all: readonly string[]) => [...new Set(all)].filter((one) => one.startsWith(typed))
  const split = splitName(before)
  const name = split.words.join(' ')
  const entry = findEntry(name)

  if (!entry) {
    if (before.length > 0 && named(GLOBAL_FLAGS, before.at(-1) ?? '')?.kind === 'one') return []
    const all = COMMANDS.filter((one) => one.hidden !== true).flatMap((one) => one.names)
    if (nounOf(name))
      return fitting(all.filter((one) => one.startsWith(`${name} `)).map((one) => one.slice(name.length + 1)))
    if (name !== '') return []
    if (typed.startsWith('-'))
      return fitting([...Object.keys(GLOBAL_FLAGS).map((key) => `--${kebab(key)}`), '--version'])
    return fitting([...all.filter((one) => !one.includes(' ')), ...Object.keys(NOUNS)])
  }

  const command = await entry.load()
  const flags: Flags = { ...GLOBAL_FLAGS, ...(await flagsOf(command, programs)) }
  if (split.after.includes('--')) return [FILES]
  const waiting = named(flags, split.after.at(-1) ?? '')
  if (waiting && waiting.kind !== 'switch') {
    if (waiting.words ?? waiting.noun)
      return fitting([...(waiting.words ?? []), ...(waiting.noun ? await names(waiting.noun) : [])])
    if (waiting.placeholder === 'KERNEL') return fitting(await names('kernel'))
    return waiting.placeholder === 'FILE' || waiting.placeholder === 'DIR' ? [FILES] : []
  }
  if (typed.startsWith('-'))
    return fitting(
      Object.entries(flags)
        .filter(([, flag]) => flag.hidden !== true)
        .map(([key]) => `--${kebab(key)}`),
    )
  if (name === 'help')
    return fitting(
      COMMANDS.filter((one) => one.hidden !== true)
        .map((one) => one.names[0])
        .filter((one) => !one.includes(' ')),
    )
  if (name === 'completion') return fitting(['bash'])

  let given: number
  try {
    given = parseFlags(flags, split.after, { verb: name, command: command.command === true, argsMax: command.args.max })
      .args.length
  } catch {
    return []
  }
  if (given >= command.args.max) return command.command ? [FILES] : []
  const nouns = command.args.nouns ?? []
  const noun = nouns[Math.min(given, nouns.length - 1)] ?? 'none'
  if (noun === 'none') return []
  if (noun === 'file') return [FILES]
  if (noun !== 'place') return fitting(await names(noun))
  const found = fitting((await names('vm')).map((one) => `${one}:`))
  return found.length === 0 ? [FILES] : found
}
