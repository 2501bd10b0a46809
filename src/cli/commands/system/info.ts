import { command } from '../../command.ts'
import { renderFields } from '../../table.ts'

export const info = command({
  usage: '',
  flags: {},
  args: { min: 0, max: 0 },
  async run(context) {
    const info = await (await context.client()).call('system.info', {})
    await context.out.show(info, {
      table: () =>
        renderFields(
          [
            ['Version', info.version],
            ['Mode', `${info.mode}, user ${info.uid}, process ${info.pid}`],
            ['Socket', info.socket],
            ['Listens on', info.api_listen_addr === '' ? 'the socket only' : info.api_listen_addr],
            ['State', info.state_dir],
            ['Hypervisor', info.hypervisor],
            ['Accelerator', `${info.accelerator} (${info.accelerator_reason})`],
            ['CPUs', String(info.cpus)],
            ['Memory', `${info.memory_mb} MiB`],
            ['Guest protocol', String(info.generation)],
            ['Started', info.started_at],
            ['Features', info.features.join(', ')],
          ],
          context.out.look,
        ),
      name: () => [info.socket],
    })
    return 0
  },
})
