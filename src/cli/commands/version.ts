import { Fault } from '../../lib/fault.ts'
import { command } from '../command.ts'
import { yes } from '../flags.ts'
import { renderFields } from '../table.ts'

export default command({
  usage: '[FLAGS]', flags: { short: yes('The version of this program only') }, args: { min: 0, max: 0 },
  async run(context, { flags }) {
    const { version } = context.programs
    if (flags.short) { await context.out.line(version); return 0 }
    let daemon: { readonly version: string; readonly api: string; readonly generation: number } | null = null
    try {
      const info = await (await context.client()).call('system.info', {}, { signal: AbortSignal.timeout(3000) })
      daemon = { version: info.version, api: info.api, generation: info.generation }
    } catch (error) {
      // A version of our own is an answer also where no daemon is; an address that was asked for and is wrong is not.
      if (context.globals.host !== undefined || (error instanceof Fault && error.kind !== 'unavailable')) throw error
    }
    await context.out.show({ client: { version }, daemon }, {
      table: () => renderFields([['Program', version], ['Daemon', daemon === null ? 'none answers' : daemon.version],
        ...(daemon === null ? [] : [['API', daemon.api], ['Guest protocol', String(daemon.generation)]] as const)], context.out.look),
      name: () => [version] })
    return 0
  },
})
