import type { Host } from '../host.ts'
import { bodyOf } from './answer.ts'
import type { Handlers } from './handler.ts'

/** Handles the operations of images. */
export const imageHandlers = ({ images }: Host) =>
  ({
    'image.import': ({ query, request, signal }) => images.import(query, bodyOf(request), signal),
    'image.list': () => images.list(),
    'image.get': ({ params }) => images.get(params.name),
    'image.delete': ({ params }) => images.delete(params.name),
  }) satisfies Partial<Handlers>
