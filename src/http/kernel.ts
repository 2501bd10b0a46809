import type { Host } from '../host.ts'
import { bodyOf } from './answer.ts'
import type { Handlers } from './handler.ts'

/** Handles the operations of kernels. */
export const kernelHandlers = ({ kernels }: Host) =>
  ({
    'kernel.import': ({ query, request, signal }) => kernels.import(query, bodyOf(request), signal),
    'kernel.list': () => kernels.list(),
    'kernel.get': ({ params }) => kernels.get(params.name),
    'kernel.delete': ({ params }) => kernels.delete(params.name),
  }) satisfies Partial<Handlers>
