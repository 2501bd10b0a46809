import type { Check } from '../../../contract/system.ts'
import { command } from '../../command.ts'
import { yes } from '../../flags.ts'
import { plain, plainJson } from '../../../lib/plain.ts'
import { paint, type Paint } from '../../table.ts'

const MARK: Readonly<Record<Check['status'], readonly [string, Paint]>> = {
  ok: ['ok  ', 'green'],
  warn: ['warn', 'yellow'],
  fail: ['FAIL', 'red'],
}

export const doctor = command({
  usage: '[FLAGS]',
  detail: 'Needs no daemon. Exit code 0: vms can run here; 1: they cannot.',
  flags: { json: yes('The same as --output json') },
  args: { min: 0, max: 0 },
  async run(context, { flags }) {
    const report = await context.programs.doctor()
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
