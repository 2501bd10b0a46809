import type { Context } from './command.ts'
import { asFault, problemOf, sayFault } from './fault-text.ts'
import { EXIT } from './exit.ts'
import { complain } from './out.ts'

/** One verb on many names: a failure of one does not keep the others from it. The exit code is the first failure's. */
export const each = async (
  context: Context,
  names: readonly string[],
  act: (name: string) => Promise<void>,
): Promise<number> => {
  let code = 0
  for (const name of names) {
    try {
      await act(name)
    } catch (error) {
      const fault = asFault(error)
      complain(context.out.format === 'json' ? JSON.stringify(problemOf(fault)) : sayFault(fault))
      if (code === 0) code = EXIT[fault.kind]
    }
  }
  return code
}
