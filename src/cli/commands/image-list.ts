import { sayBytes } from '../../lib/bytes.ts'
import { command } from '../command.ts'
import { sayAgo } from '../table.ts'

export default command({
  usage: '',
  flags: {},
  args: { min: 0, max: 0 },
  async run(context) {
    const images = await (await context.client()).call('image.list', {})
    await context.out.show(images, {
      table: () => ({
        columns: [
          { title: 'NAME', cut: true },
          { title: 'DIGEST' },
          { title: 'STATUS' },
          { title: 'SIZE', right: true },
          { title: 'CREATED' },
        ],
        rows: images.map((one) => [
          one.name ?? '<none>',
          one.digest.slice(7, 19),
          one.status,
          sayBytes(one.size_bytes),
          sayAgo(one.created_at),
        ]),
      }),
      name: () => images.map((one) => one.name ?? one.digest),
    })
    return 0
  },
})
