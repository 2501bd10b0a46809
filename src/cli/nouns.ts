import type { Client } from '../client/client.ts'

/** One noun of the command line: what help says of it, and what a shell may complete. */
interface NounOf {
  readonly summary: string
  /** The names that there are now; absent where nothing of this noun has a name. */
  readonly names?: (client: Client, signal: AbortSignal) => Promise<readonly string[]>
}

/** The nouns that stand in front of verbs. A new noun is an entry here, and its commands in `commands.ts`. */
export const NOUNS = {
  vm: {
    summary: 'microVMs',
    names: async (client, signal) => (await client.call('vm.list', { query: {} }, { signal })).map((vm) => vm.name),
  },
  image: {
    summary: 'Root file systems',
    names: async (client, signal) =>
      (await client.call('image.list', {}, { signal })).flatMap((image) => image.name ?? []),
  },
  kernel: {
    summary: 'Guest kernels',
    names: async (client, signal) => (await client.call('kernel.list', {}, { signal })).map((kernel) => kernel.name),
  },
  network: {
    summary: 'Networks of vms and containers',
    names: async (client, signal) => (await client.call('network.list', {}, { signal })).map((network) => network.name),
  },
  port: { summary: 'Ports of this host that lead into vms' },
  system: { summary: 'The daemon and this host' },
  token: {
    summary: 'Tokens of the API',
    names: async (client, signal) => (await client.call('token.list', {}, { signal })).map((token) => token.name),
  },
} as const satisfies Readonly<Record<string, NounOf>>

export type Noun = keyof typeof NOUNS
/** What an argument of a command can be, for completion; a `place` is `VM:PATH` or a path of this host. */
export type ArgumentNoun = Noun | 'file' | 'place' | 'none'

/** Finds the noun that a word is; undefined where it is none. */
export const nounOf = (word: string): NounOf | undefined =>
  Object.hasOwn(NOUNS, word) ? NOUNS[word as Noun] : undefined
