import { sayBytes } from '../../../lib/bytes.ts'
import { inspecting, listing, onEach } from '../../shapes.ts'
import { sayAgo } from '../../table.ts'

export const list = listing({
  list: (client) => client.call('kernel.list', {}),
  table: (kernels) => ({
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
  nameOf: (kernel) => kernel.name,
})

export const inspect = inspecting('kernel', {
  get: (client, name) => client.call('kernel.get', { params: { name } }),
  nameOf: (kernel) => kernel.name,
})

export const remove = onEach('kernel', {
  async act(client, name) {
    await client.call('kernel.delete', { params: { name } })
    return { name }
  },
})
