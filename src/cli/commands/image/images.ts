import { sayBytes } from '../../../lib/bytes.ts'
import { inspecting, listing, onEach } from '../../shapes.ts'
import { sayAgo } from '../../table.ts'

export const list = listing({
  list: (client) => client.call('image.list', {}),
  table: (images) => ({
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
  nameOf: (image) => image.name ?? image.digest,
})

export const inspect = inspecting('image', {
  get: (client, name) => client.call('image.get', { params: { name } }),
  nameOf: (image) => image.name ?? image.digest,
})

export const remove = onEach('image', {
  async act(client, name) {
    await client.call('image.delete', { params: { name } })
    return { name }
  },
})
