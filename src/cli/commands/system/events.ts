import { type Event, EVENT_TYPES } from '../../../contract/events.ts'
import { command } from '../../command.ts'
import { integer, list, text, yes } from '../../flags.ts'
import { defined } from '../../schema-flags.ts'
import { plain } from '../../../lib/plain.ts'

export const events = command({
  usage: '[FLAGS]',
  detail: 'One line an event, JSON Lines with --output json. A cut connection is made again where it was left.',
  flags: {
    follow: yes('Go on as more happens; --no-follow ends after what has happened', { short: 'f' }),
    after: integer('Only events with a larger number; 0 = all that are kept', 0, Number.MAX_SAFE_INTEGER),
    type: list('Only this type', 'TYPE', { words: EVENT_TYPES }),
    name: text('Only of this name', 'NAME'),
  },
  args: { min: 0, max: 0 },
  async run(context, { flags }) {
    const client = await context.client()
    const follow = flags.follow !== false
    const events = client.sse(
      'events',
      {
        query: {
          follow,
          ...defined({ after: flags.after, type: flags.type?.join(','), name: flags.name }),
        },
      },
      { endless: follow },
    )
    for await (const { data } of events) {
      const event = JSON.parse(data) as Event
      await context.out.item(
        event,
        () =>
          `${event.timestamp}  ${String(event.seq).padStart(6)}  ${event.type.padEnd(16)}  ${plain(event.name)}${event.message === '' ? '' : `  ${plain(event.message)}`}`,
      )
    }
    return 0
  },
})
