import type { TSchema } from '@sinclair/typebox'
import type { Client } from '../client/client.ts'
import type { Doctor } from '../contract/system.ts'
import type { Environment } from '../lib/paths.ts'
import type { Out } from './out.ts'
import type { ArgumentNoun } from './nouns.ts'
import { text, word, yes, type Flags, type Values } from './flags.ts'
import { FORMATS } from './out.ts'

/** The guest kernel and the image inside this file, where it was built with them. */
export interface Contents {
  readonly kernel: {
    readonly version: string
    readonly size_bytes: number
    readonly modules: number
    readonly source: string
  } | null
  readonly kernelConfig: string
  readonly base: { readonly name: string; readonly size_bytes: number } | null
}

/** What a command does with its terminal, and whether it may: linux/terminal.ts. */
export interface Terminal {
  foreground(): boolean
  /** Hands on every key and every byte as it is, ^C included, until the disposal; undefined in the background. */
  raw(): (Disposable & { renew(): void }) | undefined
}

/** What the command line starts and does not know: given by main.ts, so that no command imports the daemon. */
export interface Programs {
  readonly version: string
  readonly serve: (flags: Record<string, unknown>) => Promise<number>
  readonly settings: () => Promise<Readonly<Record<string, TSchema>>>
  /** Looks at this host for the daemon that serves: the host's, or the user's own. */
  readonly doctor: (which: 'system' | 'user') => Promise<Doctor>
  readonly contents: () => Promise<Contents>
  readonly licenses: () => Promise<string>
  /** The terminal that stdin is; undefined where it is none. */
  readonly terminal: () => Promise<Terminal | undefined>
}

/** Flags of every command. They may also stand before its name. */
export const GLOBAL_FLAGS = {
  output: word(FORMATS, 'How results are printed', { short: 'o' }),
  quiet: yes('Names only, no progress', { short: 'q' }),
  host: text('Daemon: unix:///path, http://host:port, or "system" or "user" (AERIE_HOST)', 'ADDRESS', { short: 'H' }),
  tokenFile: text('File with the token for an http address (else AERIE_TOKEN)', 'FILE'),
  verbose: yes('Say which daemon serves'),
  help: yes('Show help', { short: 'h' }),
} satisfies Flags
export type Globals = Values<typeof GLOBAL_FLAGS>

/** `start`: where no daemon answers, one is started for this user. `use`: where none answers, that is the fault. */
export type Need = 'start' | 'use'

/** Everything that a command may use of the process that runs it. */
export interface Context {
  readonly env: Environment
  readonly globals: Globals
  readonly out: Out
  readonly programs: Programs
  client(need?: Need): Promise<Client>
}

/** The words that a command was called with, read by its flags. */
export interface Input<F> {
  readonly flags: Values<F>
  readonly args: readonly string[]
  /** What stands after `--`, or after the arguments where a guest's command follows them. */
  readonly rest: readonly string[] | undefined
}

/** One command: what it takes, what its help says, and what it does. */
export interface CommandOf<F extends Flags> {
  /** `NAME [COMMAND…]`: what follows the command's own name. */
  readonly usage: string
  readonly detail?: string
  readonly flags: F
  readonly args: { readonly min: number; readonly max: number; readonly nouns?: readonly ArgumentNoun[] }
  /** A guest's command may follow the arguments, with or without `--`. */
  readonly command?: boolean
  /** Flags that are known at run time only. */
  readonly moreFlags?: (programs: Programs) => Promise<Flags>
  run(context: Context, input: Input<F>): Promise<number>
}
export type Command = CommandOf<Flags>

/** Lists the flags that are a command's own. */
export const flagsOf = async (it: Command, programs: Programs): Promise<Flags> => ({
  ...it.flags,
  ...(await it.moreFlags?.(programs)),
})

/** Declares a command, with its input typed by its flags. */
export const command = <const F extends Flags>(it: CommandOf<F>): Command => it as unknown as Command
