/**
 * The commands of one shape: a verb on each thing that is named, everything about the things that are named, a list of
 * them all.
 *
 * Such a command is a few words (what it asks the daemon, and how an answer looks); what is the same in all of them
 * stands here.
 */
import type { Client } from '../client/client.ts'
import { plainJson } from '../lib/plain.ts'
import { command, type Command, type Context } from './command.ts'
import { EXIT } from './exit.ts'
import { faultOrDefect, problemOf, sayFault } from './fault-text.ts'
import type { Flags, Values } from './flags.ts'
import type { Noun } from './nouns.ts'
import { complain } from './out.ts'
import type { Table } from './table.ts'

/** How many things one command may name. */
const NAMES_MAX = 256

/**
 * Does one thing for many names: a failure of one does not keep the others from it. The exit code is the first
 * failure's.
 */
export const each = async (
  context: Context,
  names: readonly string[],
  act: (name: string) => Promise<void>,
): Promise<number> => {
  let code = 0
  for (const name of names) {
    try {
      await act(name)
    } catch (error) {
      const fault = faultOrDefect(error)
      complain(context.out.format === 'json' ? plainJson(problemOf(fault)) : sayFault(fault))
      if (code === 0) code = EXIT[fault.kind]
    }
  }
  return code
}

/** Makes a command that does its verb to each thing that is named, and prints the names of those that it did it to. */
export const onEach = <const F extends Flags = Record<never, never>>(
  noun: Noun,
  it: {
    readonly flags?: F
    readonly detail?: string
    /** Does the verb; what it returns has the name that is printed. */
    act(client: Client, name: string, flags: Values<F>): Promise<{ readonly name: string }>
  },
): Command =>
  command({
    usage: it.flags === undefined ? 'NAME…' : '[FLAGS] NAME…',
    ...(it.detail !== undefined && { detail: it.detail }),
    flags: it.flags ?? ({} as F),
    args: { min: 1, max: NAMES_MAX, nouns: [noun] },
    async run(context, { flags, args }) {
      const client = await context.client()
      return each(context, args, async (name) => {
        await context.out.done(await it.act(client, name, flags))
      })
    },
  })

/**
 * Makes a command that shows whole things: one as itself, several as a list. JSON where no other format is asked for.
 */
export const inspecting = <T>(
  noun: Noun,
  it: {
    readonly detail?: string
    get(client: Client, name: string): Promise<T>
    nameOf(thing: T): string
  },
): Command =>
  command({
    usage: 'NAME…',
    ...(it.detail !== undefined && { detail: it.detail }),
    flags: {},
    args: { min: 1, max: NAMES_MAX, nouns: [noun] },
    async run(context, { args }) {
      const client = await context.client()
      const found: T[] = []
      const code = await each(context, args, async (name) => {
        found.push(await it.get(client, name))
      })
      if (found.length === 0) return code
      const value: unknown = args.length === 1 ? found[0] : found
      await context.out.show(value, {
        table: () => `${plainJson(value, 2)}\n`,
        name: () => found.map((thing) => it.nameOf(thing)),
      })
      return code
    },
  })

/** Makes a command that lists what there is. */
export const listing = <T, const F extends Flags = Record<never, never>>(it: {
  readonly flags?: F
  readonly detail?: string
  list(client: Client, flags: Values<F>): Promise<readonly T[]>
  table(all: readonly T[]): Table
  nameOf(thing: T): string
}): Command =>
  command({
    usage: it.flags === undefined ? '' : '[FLAGS]',
    ...(it.detail !== undefined && { detail: it.detail }),
    flags: it.flags ?? ({} as F),
    args: { min: 0, max: 0 },
    async run(context, { flags }) {
      const all = await it.list(await context.client(), flags)
      await context.out.show(all, { table: () => it.table(all), name: () => all.map((thing) => it.nameOf(thing)) })
      return 0
    },
  })
