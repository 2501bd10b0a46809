import { sayBytes } from '../../lib/bytes.ts'
import { command } from '../command.ts'
import { sayAgo } from '../table.ts'

export default command({
  usage: '',
  flags: {},
  args: { min: 0, max: 0 },
  async run(context) {
    const kernels = await (await context.client()).call('kernel.list', {})
    await context.out.show(kernels, {
      table: () => ({
        columns: [
          { title: 'NAME', cut: true },
          { title: 'DEFAULT' },
          { title: 'VERSION', cut: true },
          { title: 'DIGEST' },
          { title: 'FORMAT' },
          { title: 'MODULES', right: true },
          { title: 'SIZE', right: true },
          { title: 'CREATED' },
        ],
        rows: kernels.map((one) => [
          one.name,
          one.default ? 'yes' : '',
          one.version,
          one.digest.slice(7, 19),
          one.format,
          String(one.modules.length),
          sayBytes(one.size_bytes),
          sayAgo(one.created_at),
        ]),
      }),
      name: () => kernels.map((one) => one.name),
    })
    return 0
  },
})
