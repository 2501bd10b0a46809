import { Fault } from '../lib/fault.ts'
import { plain, plainJson } from '../lib/plain.ts'
import { systemPaths, userPaths, type Environment } from '../lib/paths.ts'
import { COMMANDS, findEntry, type Entry } from './commands.ts'
import { NOUNS, nounOf } from './nouns.ts'
import { flagsOf, GLOBAL_FLAGS, type Context, type Globals, type Programs } from './command.ts'
import { EXIT, EXIT_OURS, EXIT_PIPE } from './exit.ts'
import { parseFlags, usageInvalid } from './flags.ts'
import { faultOrDefect, problemOf, sayFault } from './fault-text.ts'
import { complain, Out } from './out.ts'
import { suggest } from './suggest.ts'
import { checkWords, ownWords } from './words.ts'

/** Finds where the words of a command's name end: flags of every command may stand before it. */
export const splitName = (
  argv: readonly string[],
): { readonly before: string[]; readonly words: string[]; readonly after: string[] } => {
  const before: string[] = []
  let at = 0
  for (; at < argv.length; at++) {
    const word = argv[at] ?? ''
    if (!word.startsWith('-') || word === '-' || word === '--') break
    before.push(word)
    const takesValue = Object.entries(GLOBAL_FLAGS).some(
      ([key, flag]) =>
        flag.kind !== 'switch' &&
        (word === `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}` ||
          ('short' in flag && word === `-${flag.short}`)),
    )
    if (takesValue && at + 1 < argv.length) before.push(argv[++at] ?? '')
  }
  const rest = argv.slice(at)
  const two = rest.slice(0, 2).join(' ')
  const length = rest.length >= 2 && findEntry(two) ? 2 : rest.length > 0 && rest[0] !== '--' ? 1 : 0
  return { before, words: rest.slice(0, length), after: rest.slice(length) }
}

const unknownCommand = (words: readonly string[], after: readonly string[]): Fault => {
  const typed = words.join(' ')
  const verb = after.find((word) => !word.startsWith('-'))
  const known = COMMANDS.filter((entry) => entry.hidden !== true)
  const names = known.flatMap((entry) => entry.names)
  const all = known.flatMap((entry) => [...entry.names, ...(entry.also ?? [])])
  if (nounOf(typed)) {
    const verbs = names.filter((name) => name.startsWith(`${typed} `)).map((name) => name.slice(typed.length + 1))
    const every = all.filter((name) => name.startsWith(`${typed} `)).map((name) => name.slice(typed.length + 1))
    const near = verb === undefined ? undefined : suggest(verb, every)
    return usageInvalid({
      reason:
        verb === undefined
          ? `Cannot do "${typed}": a verb is missing`
          : `Cannot do "${typed} ${verb}": there is no such command`,
      hint: near === undefined ? `Verbs of ${typed}: ${verbs.join(', ')}` : `Did you mean "${typed} ${near}"?`,
    })
  }
  const near = suggest(typed, all.filter((name) => !name.includes(' ')).concat(Object.keys(NOUNS)))
  return usageInvalid({
    reason: `Cannot do "${typed}": there is no such command`,
    hint: near === undefined ? 'See "aerie help"' : `Did you mean "${near}"?`,
  })
}

const isPipe = (error: unknown): boolean =>
  (error as { code?: unknown } | null)?.code === 'EPIPE' && !(error instanceof Fault)

/**
 * Ends the program by an error that no promise of a command led to, said like any other, instead of a page of minified
 * source.
 */
const fatal = (error: unknown): never => {
  if (isPipe(error)) process.exit(EXIT_PIPE)
  complain(sayFault(faultOrDefect(error)))
  process.exit(EXIT.internal)
}

/** Runs one command line and gives its exit code. Every error ends here. */
export const main = async (given: readonly string[], env: Environment, programs: Programs): Promise<number> => {
  const argv = ownWords(given)
  let entry: Entry | undefined
  // Before the flags are read: an error in the flags also wants its format.
  const ours = argv.includes('--') ? argv.slice(0, argv.indexOf('--')) : argv
  const json = ours.some(
    (word, at) =>
      word === '-ojson' ||
      word === '--output=json' ||
      (word === 'json' && ['-o', '--output'].includes(ours[at - 1] ?? '')),
  )
  try {
    const { before, words, after } = splitName(argv)
    const name = words.join(' ')
    if (name === '') {
      const globals = parseFlags(GLOBAL_FLAGS, before, { verb: 'aerie', command: false, argsMax: 0 })
      const { overview } = await import('./help.ts')
      if ((globals.values as Globals).help !== true && before.length > 0)
        throw usageInvalid({ reason: 'Cannot do nothing: there is no command', hint: 'See "aerie help"' })
      await new Out('table', false, env).help(overview())
      return 0
    }
    entry = findEntry(name)
    if (!entry) {
      if (nounOf(name) && [...before, ...after].some((word) => word === '--help' || word === '-h')) {
        const { groupHelp } = await import('./help.ts')
        await new Out('table', false, env).help(groupHelp(name))
        return 0
      }
      throw unknownCommand(words, after)
    }
    const command = await entry.load()
    const flags = await flagsOf(command, programs)
    const parsed = parseFlags({ ...GLOBAL_FLAGS, ...flags }, [...before, ...after], {
      verb: name,
      command: command.command === true,
      argsMax: command.args.max,
    })
    checkWords(argv.slice(0, argv.length - ((command.command === true && parsed.rest?.length) || 0)))
    const globals = parsed.values as Globals
    if (globals.help === true) {
      const { commandHelp } = await import('./help.ts')
      await new Out('table', false, env).help(commandHelp(entry, command, flags))
      return 0
    }
    if (!command.command && parsed.rest !== undefined) parsed.args.push(...parsed.rest)
    const missing = parsed.args.length < command.args.min
    if (missing || parsed.args.length > command.args.max) {
      throw usageInvalid({
        reason: missing
          ? `Cannot ${name}: an argument is missing`
          : `Cannot ${name}: "${parsed.args[command.args.max]}" is one argument too many`,
        hint: `aerie ${name} ${command.usage}`.trimEnd(),
      })
    }
    if (name !== 'serve' && name !== 'system serve') {
      // the daemon has its own way to die
      process.on('uncaughtException', fatal).on('unhandledRejection', fatal)
    }
    const out = new Out(globals.output ?? 'table', globals.quiet === true, env)
    return await command.run(newContext(env, globals, out, programs), {
      flags: parsed.values,
      args: parsed.args,
      rest: command.command ? parsed.rest : undefined,
    })
  } catch (error) {
    if (isPipe(error)) return EXIT_PIPE
    const fault = faultOrDefect(error)
    if (env['AERIE_DEBUG']) complain(Bun.inspect(error).split('\n').map(plain).join('\n'))
    complain(json ? plainJson(problemOf(fault)) : sayFault(fault))
    return entry?.guestCode ? EXIT_OURS : EXIT[fault.kind]
  }
}

const newContext = (env: Environment, globals: Globals, out: Out, programs: Programs): Context => ({
  env,
  globals,
  out,
  programs,
  async client(need = 'use') {
    const [{ reach, selfOf }, { connect }, { sayEndpoint }] = await Promise.all([
      import('./choose-daemon.ts'),
      import('../client/client.ts'),
      import('../client/endpoint.ts'),
    ])
    const uid = process.getuid?.() ?? 0
    const reached = await reach(
      {
        env,
        uid,
        system: systemPaths,
        // Found out where it is asked for: a user of the host's daemon needs no home.
        get user() {
          return userPaths(env, uid)
        },
        self: selfOf(),
      },
      globals,
      need,
    )
    if (reached.how === 'started' || globals.verbose) {
      out.note(
        `${{ asked: 'the daemon', system: 'the daemon of this host', user: 'your own daemon', started: 'a new daemon of yours' }[reached.how]} serves at ${sayEndpoint(reached.endpoint)}`,
      )
    }
    return connect(reached.endpoint)
  },
})
