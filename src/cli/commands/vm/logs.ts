import { LogQuery, type LogLine } from '../../../contract/log.ts'
import { plain } from '../../../lib/plain.ts'
import { command } from '../../command.ts'
import { yes } from '../../flags.ts'
import { schemaFlags } from '../../schema-flags.ts'
import { writeAll } from '../../stdio.ts'

const FIELDS = schemaFlags(LogQuery, {
  more: {
    follow: { help: 'Go on as more is said', short: 'f' },
    tail: { help: 'Only the last lines', short: 'n' },
    since: { help: 'Only from then on: RFC 3339, or a time back from now (5m)', placeholder: 'TIME' },
    source: { help: 'Whose words: the workload (app), the serial console, the VMM, our agent' },
  },
})

export const logs = command({
  usage: '[FLAGS] NAME',
  detail: 'What the workload wrote to its stderr goes to stderr. Works on stopped vms too.',
  flags: {
    ...FIELDS.flags,
    timestamps: yes('Put the time before each line', { short: 't' }),
  },
  args: { min: 1, max: 1, nouns: ['vm'] },
  async run(context, { flags, args }) {
    const client = await context.client()
    const events = client.sse('vm.logs', {
      params: { name: args[0] ?? '' },
      query: {
        ...FIELDS.said(flags),
      },
    })
    for await (const event of events) {
      const line = JSON.parse(event.data) as LogLine
      if (context.out.format === 'json' || context.out.format === 'yaml') {
        await context.out.item(line, () => '')
        continue
      }
      const source = flags.source === 'all' ? `${line.source.padEnd(7)} ` : ''
      const time = flags.timestamps ? `${line.timestamp ?? '-'} ` : ''
      // The workload's own output is its own, byte for byte, as with docker logs; the rest is told by us, and no
      // terminal obeys it.
      const said = line.source === 'app' ? line.line : plain(line.line)
      const before = `${time}${source}`
      await writeAll(
        line.stream === 'stderr' ? 2 : 1,
        Buffer.concat([
          Buffer.from(before),
          Buffer.from(said, line.encoding ?? 'utf8'),
          Buffer.from(line.partial && before === '' ? '' : '\n'),
        ]),
      )
    }
    return 0
  },
})
