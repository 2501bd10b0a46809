import type { Command } from './command.ts'
import type { Noun } from './nouns.ts'

/** One line a command: its names (Docker's short form first, where there is one), what it is, and where it is. */
export interface Entry {
  readonly names: readonly [string, ...string[]]
  /** Other names, which work and are offered nowhere. */
  readonly also?: readonly string[]
  readonly summary: string
  /** Loads the command's file: what is not asked for costs nothing. */
  readonly load: () => Promise<Command>
  /** The exit code is the guest's: every fault of ours is 125. Known before the command is loaded, should that fail. */
  readonly guestCode?: true
  readonly hidden?: boolean
}

/** The words for one verb: every noun that has the verb knows all of them, and the first is the one that is offered. */
const SYNONYMS = {
  list: ['ls', 'list'],
  delete: ['rm', 'delete'],
  inspect: ['inspect', 'show', 'get'],
} as const

/** Lists the names of a verb of a noun, and of the short form of one of the vm's. */
const named = (noun: Noun, verb: keyof typeof SYNONYMS): Pick<Entry, 'names' | 'also'> => {
  const [first, ...others] = SYNONYMS[verb]
  const [before, ...more] = noun === 'vm' ? [first, `${noun} ${first}`] : [`${noun} ${first}`]
  return {
    names: [before, ...more],
    also: others.flatMap((word) => (noun === 'vm' && word !== 'get' ? [word, `${noun} ${word}`] : [`${noun} ${word}`])),
  }
}

export const COMMANDS: readonly Entry[] = [
  {
    names: ['run'],
    summary: 'Run a command in a fresh microVM',
    load: () => import('./commands/vm/run.ts').then((file) => file.run),
    guestCode: true,
  },
  {
    names: ['exec', 'vm exec'],
    summary: 'Run a command in a running vm',
    load: () => import('./commands/vm/exec.ts').then((file) => file.exec),
    guestCode: true,
  },
  {
    names: ['attach', 'vm attach'],
    summary: 'Join the workload of a vm',
    load: () => import('./commands/vm/attach.ts').then((file) => file.attach),
    guestCode: true,
  },
  {
    names: ['logs', 'vm logs'],
    summary: 'Show what a vm has said',
    load: () => import('./commands/vm/logs.ts').then((file) => file.logs),
  },
  {
    names: ['cp', 'vm cp'],
    summary: 'Copy files into and out of a vm',
    load: () => import('./commands/vm/cp.ts').then((file) => file.cp),
  },
  { names: ['ps'], summary: 'List running vms', load: () => import('./commands/vm/list.ts').then((file) => file.ps) },
  {
    ...named('vm', 'list'),
    summary: 'List all vms',
    load: () => import('./commands/vm/list.ts').then((file) => file.list),
  },
  {
    names: ['create', 'vm create'],
    summary: 'Create a vm and start it',
    load: () => import('./commands/vm/create.ts').then((file) => file.create),
  },
  {
    names: ['start', 'vm start'],
    summary: 'Start stopped vms',
    load: () => import('./commands/vm/start.ts').then((file) => file.start),
  },
  {
    names: ['stop', 'vm stop'],
    summary: 'Stop vms',
    load: () => import('./commands/vm/moves.ts').then((file) => file.stop),
  },
  {
    names: ['update', 'vm update'],
    summary: 'Change ports, egress and speed of a vm',
    load: () => import('./commands/vm/update.ts').then((file) => file.update),
  },
  {
    names: ['restart', 'vm restart'],
    summary: 'Stop and start vms',
    load: () => import('./commands/vm/moves.ts').then((file) => file.restart),
  },
  {
    names: ['pause', 'vm pause'],
    summary: 'Halt vms; their memory stays',
    load: () => import('./commands/vm/moves.ts').then((file) => file.pause),
  },
  {
    names: ['resume', 'vm resume'],
    summary: 'Run paused vms on',
    load: () => import('./commands/vm/moves.ts').then((file) => file.resume),
  },
  {
    names: ['standby', 'vm standby'],
    summary: 'Move the memory of vms to disk',
    load: () => import('./commands/vm/moves.ts').then((file) => file.standby),
  },
  {
    names: ['restore', 'vm restore'],
    summary: 'Run vms in standby on',
    load: () => import('./commands/vm/moves.ts').then((file) => file.restore),
  },
  {
    names: ['fork', 'vm fork'],
    summary: 'Clone a vm, running or not',
    load: () => import('./commands/vm/fork.ts').then((file) => file.fork),
  },
  {
    ...named('vm', 'delete'),
    summary: 'Delete vms',
    load: () => import('./commands/vm/delete.ts').then((file) => file.remove),
  },
  {
    ...named('vm', 'inspect'),
    summary: 'Show everything about vms',
    load: () => import('./commands/vm/inspect.ts').then((file) => file.inspect),
  },
  {
    names: ['stats', 'vm stats'],
    summary: 'Show what vms use',
    load: () => import('./commands/vm/stats.ts').then((file) => file.stats),
  },
  {
    names: ['events'],
    summary: 'Show what happens',
    load: () => import('./commands/system/events.ts').then((file) => file.events),
  },
  {
    names: ['wait', 'vm wait'],
    summary: 'Wait for a vm, and print its exit code',
    load: () => import('./commands/vm/wait.ts').then((file) => file.wait),
  },
  {
    names: ['forward', 'vm forward'],
    summary: 'Open a port of this host into a vm',
    load: () => import('./commands/vm/forward.ts').then((file) => file.forward),
  },
  {
    names: ['console', 'vm console'],
    summary: 'Use the serial console of a vm',
    load: () => import('./commands/vm/console.ts').then((file) => file.console),
  },
  {
    names: ['vm stat'],
    summary: 'Show what stands at a path of a vm',
    load: () => import('./commands/vm/stat.ts').then((file) => file.stat),
  },
  {
    names: ['vm files'],
    summary: 'List a folder of a vm',
    load: () => import('./commands/vm/files.ts').then((file) => file.files),
  },
  {
    names: ['image import'],
    summary: 'Make an image from a tar or a folder',
    load: () => import('./commands/image/import-image.ts').then((file) => file.importImage),
  },
  {
    names: ['image ls', 'images'],
    also: ['image list'],
    summary: 'List images',
    load: () => import('./commands/image/images.ts').then((file) => file.list),
  },
  {
    ...named('image', 'inspect'),
    summary: 'Show everything about images',
    load: () => import('./commands/image/images.ts').then((file) => file.inspect),
  },
  {
    ...named('image', 'delete'),
    summary: 'Delete images',
    load: () => import('./commands/image/images.ts').then((file) => file.remove),
  },
  {
    names: ['kernel import'],
    summary: 'Take a guest kernel',
    load: () => import('./commands/kernel/import-kernel.ts').then((file) => file.importKernel),
  },
  {
    ...named('kernel', 'list'),
    summary: 'List guest kernels',
    load: () => import('./commands/kernel/kernels.ts').then((file) => file.list),
  },
  {
    ...named('kernel', 'inspect'),
    summary: 'Show everything about guest kernels',
    load: () => import('./commands/kernel/kernels.ts').then((file) => file.inspect),
  },
  {
    ...named('kernel', 'delete'),
    summary: 'Delete guest kernels',
    load: () => import('./commands/kernel/kernels.ts').then((file) => file.remove),
  },
  {
    names: ['system info', 'info'],
    summary: 'Show what the daemon is',
    load: () => import('./commands/system/info.ts').then((file) => file.info),
  },
  {
    names: ['system summary'],
    summary: 'Show counts and capacity',
    load: () => import('./commands/system/summary.ts').then((file) => file.summary),
  },
  {
    names: ['doctor', 'system doctor'],
    summary: 'Check what this host can do',
    load: () => import('./commands/system/doctor.ts').then((file) => file.doctor),
  },
  {
    ...named('network', 'list'),
    summary: 'List networks',
    load: () => import('./commands/network/networks.ts').then((file) => file.list),
  },
  {
    names: ['network create'],
    summary: 'Make a network',
    load: () => import('./commands/network/networks.ts').then((file) => file.create),
  },
  {
    ...named('network', 'inspect'),
    summary: 'Show networks, their members and counters',
    load: () => import('./commands/network/networks.ts').then((file) => file.inspect),
  },
  {
    names: ['network update'],
    summary: 'Change what a network allows',
    load: () => import('./commands/network/networks.ts').then((file) => file.update),
  },
  {
    ...named('network', 'delete'),
    summary: 'Delete networks that nothing uses',
    load: () => import('./commands/network/networks.ts').then((file) => file.remove),
  },
  {
    ...named('port', 'list'),
    summary: 'List published ports',
    load: () => import('./commands/port/ports.ts').then((file) => file.list),
  },
  {
    names: ['network attach'],
    summary: 'Give a container a card in a network',
    load: () => import('./commands/network/networks.ts').then((file) => file.attach),
  },
  {
    names: ['network detach'],
    summary: 'Take a container out of a network',
    load: () => import('./commands/network/networks.ts').then((file) => file.detach),
  },
  {
    names: ['network import'],
    summary: 'Make a network of an address management file',
    load: () => import('./commands/network/networks.ts').then((file) => file.importFile),
  },
  {
    names: ['network export'],
    summary: 'Write the address management file of a network',
    load: () => import('./commands/network/networks.ts').then((file) => file.exportFile),
  },
  {
    names: ['token create'],
    summary: 'Make a token for the API',
    load: () => import('./commands/token/tokens.ts').then((file) => file.create),
  },
  {
    ...named('token', 'list'),
    summary: 'List tokens',
    load: () => import('./commands/token/tokens.ts').then((file) => file.list),
  },
  {
    ...named('token', 'inspect'),
    summary: 'Show everything about tokens but their secrets',
    load: () => import('./commands/token/tokens.ts').then((file) => file.inspect),
  },
  {
    ...named('token', 'delete'),
    summary: 'Revoke tokens',
    load: () => import('./commands/token/tokens.ts').then((file) => file.remove),
  },
  {
    names: ['api'],
    summary: 'Ask any address of the API',
    load: () => import('./commands/system/api.ts').then((file) => file.api),
  },
  {
    names: ['openapi'],
    summary: 'Print the description of the API',
    load: () => import('./commands/system/openapi.ts').then((file) => file.openapi),
  },
  {
    names: ['serve', 'system serve'],
    summary: 'Run the daemon',
    load: () => import('./commands/system/serve.ts').then((file) => file.serve),
  },
  {
    names: ['completion'],
    summary: 'Print the completion of a shell',
    load: () => import('./commands/self/completion.ts').then((file) => file.completion),
  },
  {
    names: ['version'],
    summary: 'Show the versions of program and daemon',
    load: () => import('./commands/self/version.ts').then((file) => file.version),
  },
  {
    names: ['help'],
    summary: 'Show help; --all shows every command',
    load: () => import('./commands/self/help.ts').then((file) => file.help),
  },
  {
    names: ['__complete'],
    summary: 'Words that may follow',
    load: () => import('./commands/self/complete.ts').then((file) => file.complete),
    hidden: true,
  },
]

/** Finds a command by its full name or by one of its other names. */
export const findEntry = (name: string): Entry | undefined =>
  COMMANDS.find((entry) => entry.names.includes(name) || entry.also?.includes(name))
