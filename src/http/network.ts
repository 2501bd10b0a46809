import type { Host } from '../host.ts'
import { find } from '../vm/row/lookup.ts'
import type { Handlers } from './handler.ts'

export const networkHandlers = ({ networks, store }: Host) =>
  ({
    'network.create': ({ body }) => networks.create(body),
    'network.list': () => networks.list(),
    'network.get': ({ params }) => networks.get(params.name),
    'network.update': ({ params, body }) => networks.update(params.name, body),
    'network.delete': ({ params }) => networks.delete(params.name),
    'network.attach': ({ params, body }) => networks.attach(params.name, body),
    'network.detach': ({ params }) => {
      networks.detach(params.name, params.container)
    },
    'network.import': ({ body }) => networks.import(body),
    'port.list': ({ query }) => networks.ports(query.vm === undefined ? undefined : find(store, query.vm, 'read').uid),
    'network.export': ({ params }) => networks.export(params.name),
  }) satisfies Partial<Handlers>
