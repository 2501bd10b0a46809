import type { Check } from '../../../contract/system.ts'
import { systemPaths } from '../../../lib/paths.ts'
import { answers } from '../../choose-daemon.ts'
import { command, type Context } from '../../command.ts'
import { yes } from '../../flags.ts'
import { plain, plainJson } from '../../../lib/plain.ts'
import { paint, type Paint } from '../../table.ts'

const MARK: Readonly<Record<Check['status'], readonly [string, Paint]>> = {
  ok: ['ok  ', 'green'],
  warn: ['warn', 'yellow'],
  fail: ['FAIL', 'red'],
}

/** Finds the daemon that would serve this user: the host's where it was named or answers, else the user's own. */
const whichServes = async ({ env, globals }: Context): Promise<'system' | 'user'> => {
  const named = globals.host ?? env['AERIE_HOST']
  if (named === 'system' || named === `unix://${systemPaths.socket}`) return 'system'
  if (named === 'user') return 'user'
  return (await answers(systemPaths.socket)) === true ? 'system' : 'user'
}

export const doctor = command({
  usage: '[FLAGS]',
  detail:
    'Looks at this host for the daemon that would serve you: the one of the host where it answers, else your own (--host system, --host user).\nNeeds no daemon. Exit code 0: vms can run here; 1: they cannot.',
  flags: { json: yes('The same as --output json') },
  args: { min: 0, max: 0 },
  async run(context, { flags }) {
    const report = await context.programs.doctor(await whichServes(context))
    const { out } = context
    if (flags.json) await out.text(`${plainJson(report, 2)}\n`)
    else {
      await out.show(report, {
        table: () => {
          const { colour } = out.look
          const width = Math.max(0, ...report.checks.map((check) => check.name.length))
          const lines = report.checks.map((check) => {
            const [mark, how] = MARK[check.status]
            const fix =
              check.hint === null
                ? ''
                : `\n      ${' '.repeat(width)}${paint(`fix: ${plain(check.hint)}`, 'bold', colour)}`
            return `${paint(mark, how, colour)}  ${check.name.padEnd(width)}  ${plain(check.message)}${fix}`
          })
          return `${lines.join('\n')}\n\n${report.healthy ? paint('vms can run here', 'green', colour) : paint('vms cannot run here yet', 'red', colour)}\n`
        },
        name: () => report.checks.filter((check) => check.status !== 'ok').map((check) => check.name),
      })
    }
    return report.healthy ? 0 : 1
  },
})
