import { command } from '../../command.ts'
import { renderFields } from '../../table.ts'

export const summary = command({
  usage: '',
  flags: {},
  args: { min: 0, max: 0 },
  async run(context) {
    const all = await (await context.client()).call('system.summary', {})
    const { cpu, memory_mb: memory } = all.capacity
    const states = Object.entries(all.by_status)
      .filter(([, count]) => count > 0)
      .map(([status, count]) => `${count} ${status}`)
      .join(', ')
    await context.out.show(all, {
      table: () =>
        renderFields(
          [
            ['Vms', states === '' ? String(all.total_vms) : `${all.total_vms} (${states})`],
            [
              'CPUs',
              `${cpu.allocated} of ${cpu.limit} given (${cpu.physical} real, ${cpu.oversubscription} times over)`,
            ],
            ['Memory', `${memory.allocated} of ${memory.limit} MiB given (${memory.physical} MiB real)`],
            ['Images', String(all.images)],
            ['Kernels', String(all.kernels)],
          ],
          context.out.look,
        ),
      name: () => [],
    })
    return 0
  },
})
