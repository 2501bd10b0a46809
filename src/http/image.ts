import { Elysia } from 'elysia'
import { imageOperations as op } from '../contract/image.ts'
import type { Host } from '../host.ts'
import { hook, json, noContent } from './answer.ts'

export const imageRoutes = (host: Host) =>
  new Elysia({ name: 'http/image', normalize: false, strictPath: true })
    .post(
      op['image.import'].path,
      async ({ query, request }) =>
        json(await host.images.import(query, request.body ?? new Blob([]).stream(), request.signal), 201),
      hook(op['image.import'], 'none'),
    )
    .get(op['image.list'].path, () => json(host.images.list()))
    .get(op['image.get'].path, ({ params }) => json(host.images.get(params.name)), hook(op['image.get']))
    .delete(
      op['image.delete'].path,
      ({ params }) => {
        host.images.delete(params.name)
        return noContent()
      },
      hook(op['image.delete']),
    )
