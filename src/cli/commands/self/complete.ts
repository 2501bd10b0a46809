import { command, type Context } from '../../command.ts'
import { nounOf, type ArgumentNoun } from '../../nouns.ts'
import { candidates } from '../../candidates.ts'

/** A shell waits for us with every TAB: names that do not come at once do not come. */
const NAMES_MS = 300

const namesOf = async (context: Context, noun: ArgumentNoun): Promise<readonly string[]> => {
  const signal = AbortSignal.timeout(NAMES_MS)
  const names = nounOf(noun)?.names
  if (!names) return []
  const asked = context
    .client()
    .then((client) => names(client, signal))
    .catch(() => [])
  return Promise.race([
    asked,
    new Promise<readonly string[]>((resolve) => {
      setTimeout(resolve, NAMES_MS, [])
    }),
  ])
}

export const complete = command({
  usage: '-- WORDS…',
  flags: {},
  args: { min: 0, max: 0 },
  command: true,
  async run(context, { rest = [] }) {
    const found = await candidates(rest, context.programs, (noun) => namesOf(context, noun))
    await context.out.text(found.map((one) => `${one}\n`).join(''))
    return 0
  },
})
