import { command, type Context, type Noun } from '../command.ts'
import { candidates } from '../candidates.ts'

/** A shell waits for us with every TAB: names that do not come at once do not come. */
const NAMES_MS = 300

const namesOf = async (context: Context, noun: Noun): Promise<readonly string[]> => {
  const signal = AbortSignal.timeout(NAMES_MS)
  const asked = (async (): Promise<readonly string[]> => {
    const client = await context.client()
    switch (noun) {
      case 'vm':
        return (await client.call('vm.list', { query: {} }, { signal })).map((vm) => vm.name)
      case 'image':
        return (await client.call('image.list', {}, { signal })).flatMap((image) => image.name ?? [])
      case 'kernel':
        return (await client.call('kernel.list', {}, { signal })).map((kernel) => kernel.name)
      case 'token':
        return (await client.call('token.list', {}, { signal })).map((token) => token.name)
      default:
        return []
    }
  })().catch(() => [])
  return Promise.race([
    asked,
    new Promise<readonly string[]>((resolve) => {
      setTimeout(resolve, NAMES_MS, [])
    }),
  ])
}

export default command({
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
