import type { Command } from './command.ts'

/** One line a command: its names (Docker's short form first, where there is one), what it is, and where it is. */
export interface Entry {
  readonly names: readonly [string, ...string[]]
  readonly summary: string
  readonly load: () => Promise<{ readonly default: Command }>
  readonly hidden?: boolean
}

export const COMMANDS: readonly Entry[] = [
  { names: ['run'], summary: 'Run a command in a fresh microVM', load: () => import('./commands/run.ts') },
  { names: ['exec', 'vm exec'], summary: 'Run a command in a running vm', load: () => import('./commands/exec.ts') },
  { names: ['attach', 'vm attach'], summary: 'Join the workload of a vm', load: () => import('./commands/attach.ts') },
  { names: ['logs', 'vm logs'], summary: 'Show what a vm has said', load: () => import('./commands/logs.ts') },
  { names: ['cp', 'vm cp'], summary: 'Copy files into and out of a vm', load: () => import('./commands/cp.ts') },
  { names: ['ps'], summary: 'List running vms', load: () => import('./commands/ps.ts') },
  { names: ['ls', 'vm list'], summary: 'List all vms', load: () => import('./commands/list.ts') },
  { names: ['create', 'vm create'], summary: 'Create a vm and start it', load: () => import('./commands/create.ts') },
  { names: ['start', 'vm start'], summary: 'Start stopped vms', load: () => import('./commands/start.ts') },
  { names: ['stop', 'vm stop'], summary: 'Stop vms', load: () => import('./commands/stop.ts') },
  { names: ['restart', 'vm restart'], summary: 'Stop and start vms', load: () => import('./commands/restart.ts') },
  { names: ['pause', 'vm pause'], summary: 'Halt vms; their memory stays', load: () => import('./commands/pause.ts') },
  { names: ['resume', 'vm resume'], summary: 'Run paused vms on', load: () => import('./commands/resume.ts') },
  {
    names: ['standby', 'vm standby'],
    summary: 'Move the memory of vms to disk',
    load: () => import('./commands/standby.ts'),
  },
  { names: ['restore', 'vm restore'], summary: 'Run vms in standby on', load: () => import('./commands/restore.ts') },
  { names: ['fork', 'vm fork'], summary: 'Clone a vm, running or not', load: () => import('./commands/fork.ts') },
  { names: ['rm', 'vm delete'], summary: 'Delete vms', load: () => import('./commands/delete.ts') },
  { names: ['inspect', 'vm get'], summary: 'Show everything about vms', load: () => import('./commands/inspect.ts') },
  { names: ['stats', 'vm stats'], summary: 'Show what vms use', load: () => import('./commands/stats.ts') },
  { names: ['events'], summary: 'Show what happens', load: () => import('./commands/events.ts') },
  {
    names: ['wait', 'vm wait'],
    summary: 'Wait for a vm, and print its exit code',
    load: () => import('./commands/wait.ts'),
  },
  {
    names: ['forward', 'vm forward'],
    summary: 'Open a port of this host into a vm',
    load: () => import('./commands/forward.ts'),
  },
  {
    names: ['console', 'vm console'],
    summary: 'Use the serial console of a vm',
    load: () => import('./commands/console.ts'),
  },
  { names: ['vm stat'], summary: 'Show what stands at a path of a vm', load: () => import('./commands/stat.ts') },
  { names: ['vm ls'], summary: 'List a folder of a vm', load: () => import('./commands/files.ts') },
  {
    names: ['image import'],
    summary: 'Make an image from a tar or a folder',
    load: () => import('./commands/image-import.ts'),
  },
  { names: ['image ls', 'images'], summary: 'List images', load: () => import('./commands/image-list.ts') },
  {
    names: ['image inspect'],
    summary: 'Show everything about images',
    load: () => import('./commands/image-inspect.ts'),
  },
  { names: ['image rm'], summary: 'Delete images', load: () => import('./commands/image-delete.ts') },
  { names: ['kernel import'], summary: 'Take a guest kernel', load: () => import('./commands/kernel-import.ts') },
  { names: ['kernel ls'], summary: 'List guest kernels', load: () => import('./commands/kernel-list.ts') },
  { names: ['kernel rm'], summary: 'Delete guest kernels', load: () => import('./commands/kernel-delete.ts') },
  {
    names: ['system info', 'info'],
    summary: 'Show what the daemon is',
    load: () => import('./commands/system-info.ts'),
  },
  {
    names: ['system summary'],
    summary: 'Show counts and capacity',
    load: () => import('./commands/system-summary.ts'),
  },
  {
    names: ['doctor', 'system doctor'],
    summary: 'Check what this host can do',
    load: () => import('./commands/doctor.ts'),
  },
  { names: ['token create'], summary: 'Make a token for the API', load: () => import('./commands/token-create.ts') },
  { names: ['token ls'], summary: 'List tokens', load: () => import('./commands/token-list.ts') },
  { names: ['token rm'], summary: 'Revoke tokens', load: () => import('./commands/token-delete.ts') },
  { names: ['api'], summary: 'Ask any address of the API', load: () => import('./commands/api.ts') },
  { names: ['openapi'], summary: 'Print the description of the API', load: () => import('./commands/openapi.ts') },
  { names: ['serve', 'system serve'], summary: 'Run the daemon', load: () => import('./commands/serve.ts') },
  { names: ['completion'], summary: 'Print the completion of a shell', load: () => import('./commands/completion.ts') },
  {
    names: ['version'],
    summary: 'Show the versions of program and daemon',
    load: () => import('./commands/version.ts'),
  },
  { names: ['help'], summary: 'Show help; --all shows every command', load: () => import('./commands/help.ts') },
  {
    names: ['__complete'],
    summary: 'Words that may follow',
    load: () => import('./commands/complete.ts'),
    hidden: true,
  },
]

/** Nouns in front of verbs, with what they are. */
export const GROUPS: Readonly<Record<string, string>> = {
  vm: 'microVMs',
  image: 'Root file systems',
  kernel: 'Guest kernels',
  system: 'The daemon and this host',
  token: 'Tokens of the API',
}

export const findEntry = (name: string): Entry | undefined => COMMANDS.find((entry) => entry.names.includes(name))
