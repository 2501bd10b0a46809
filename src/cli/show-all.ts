import type { Context } from './command.ts'
import { each } from './each.ts'

/** Shows whole things: one as itself, several as a list. JSON where no other format is asked for. */
export const showAll = async <T>(
  context: Context,
  names: readonly string[],
  get: (name: string) => Promise<T>,
  nameOf: (it: T) => string,
): Promise<number> => {
  const found: T[] = []
  const code = await each(context, names, async (name) => {
    found.push(await get(name))
  })
  if (found.length === 0) return code
  const value: unknown = names.length === 1 ? found[0] : found
  await context.out.show(value, { table: () => `${JSON.stringify(value, null, 2)}\n`, name: () => found.map(nameOf) })
  return code
}
