/**
 * The one executable: argv → command line, daemon, or one of its own parts.
 *
 * `--version` answers before anything else is loaded (bun.md's rule; a test of the bundle holds it): every other way is
 * an `await import()`, which the bundler makes a chunk of its own. It imports no module of Bun's either: `node:fs`
 * alone is a third of the time that a program which does nothing takes.
 */
import { VERSION } from './version.ts'

const argv = process.argv.slice(2)
const [first, second] = argv

if (argv.length === 1 && (first === '--version' || first === '-V')) {
  console.log(`aerie ${VERSION}`)
  process.exit(0)
}
if (argv.length === 2 && first === 'version' && second === '--short') {
  console.log(VERSION)
  process.exit(0)
}
if (first === 'fake-machine') {
  const { runFakeMachine } = await import('./hypervisor/drivers/fake/guest.ts')
  process.exit(await runFakeMachine(argv.slice(1)))
}

const { main } = await import('./cli/cli.ts')
process.exit(
  await main(argv, process.env, {
    version: VERSION,
    serve: async (flags) => (await import('./daemon.ts')).serve(flags),
    settings: async () => (await import('./config.ts')).Settings.properties,
    licenses: async () => (await import('./system/seeds.ts')).licenses(),
    terminal: async () => (await import('./linux/terminal.ts')).openTerminal(0),
    contents: async () => (await import('./system/seeds.ts')).seedContents(),
    doctor: async (which) => (await import('./daemon.ts')).examine(which),
  }),
)
