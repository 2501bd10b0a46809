import { Elysia } from 'elysia'
import { kernelOperations as op } from '../contract/kernel.ts'
import type { Host } from '../host.ts'
import { hook, json, noContent } from './answer.ts'

export const kernelRoutes = (host: Host) =>
  new Elysia({ name: 'http/kernel', normalize: false, strictPath: true })
    .post(
      op['kernel.import'].path,
      async ({ query, request }) =>
        json(await host.kernels.import(query, request.body ?? new Blob([]).stream(), request.signal), 201),
      hook(op['kernel.import'], 'none'),
    )
    .get(op['kernel.list'].path, () => json(host.kernels.list()))
    .delete(
      op['kernel.delete'].path,
      ({ params }) => {
        host.kernels.delete(params.name)
        return noContent()
      },
      hook(op['kernel.delete']),
    )
