import type { Host } from '../host.ts'
import { requestInvalid } from '../lib/errors.ts'
import { viewConsole } from '../vm/console.ts'
import { create, createdBefore } from '../vm/create.ts'
import { remove } from '../vm/delete.ts'
import { attach } from '../vm/attach.ts'
import { exec, execToEnd } from '../vm/exec.ts'
import { copyIn, copyOut, listFolder, stat } from '../vm/files.ts'
import { fork, forkedBefore } from '../vm/fork.ts'
import { logs } from '../vm/logs.ts'
import { pause } from '../vm/pause.ts'
import { resume } from '../vm/resume.ts'
import { dial, proxy } from '../vm/proxy.ts'
import { find } from '../vm/row/lookup.ts'
import { listJson } from '../vm/row/list.ts'
import { view } from '../vm/row/view.ts'
import { restore } from '../vm/restore.ts'
import { standby } from '../vm/standby.ts'
import { start } from '../vm/start.ts'
import { stats } from '../vm/stats.ts'
import { restart } from '../vm/restart.ts'
import { stop } from '../vm/stop.ts'
import { update } from '../vm/update.ts'
import { wait } from '../vm/wait.ts'
import { bodyOf, sse, tar } from './answer.ts'
import type { Handlers } from './handler.ts'

/** Finds the end of a forward in the guest. @throws `request_invalid` where it names no end in the guest */
const targetOf = ({ port, unix }: { readonly port?: number; readonly unix?: string }): number | string => {
  const target = unix ?? port
  if (target === undefined) throw requestInvalid({ reason: 'it names neither a port nor a Unix socket' })
  return target
}

/**
 * Handles the operations of vms without logic: a handler calls one verb. A WebSocket's looks the vm up first, so that
 * one that is not there is a 404.
 */
export const vmHandlers = (host: Host) => {
  const uidOf = (name: string): string => find(host.store, name, 'read').uid
  return {
    'vm.create': {
      first: ({ body }, claim) => create(host, body, claim),
      again: (made) => createdBefore(host, made),
    },
    'vm.list': ({ query }) => {
      const { json, total } = listJson(host.store, query)
      return new Response(json, { headers: { 'content-type': 'application/json', 'x-total-count': String(total) } })
    },
    'vm.get': ({ params }) => view(find(host.store, params.name, 'read')),
    'vm.delete': ({ params }) => remove(host, params.name),
    'vm.start': ({ params, body }) => start(host, params.name, body),
    'vm.stop': ({ params, body }) => stop(host, params.name, body),
    'vm.update': ({ params, body }) => update(host, params.name, body),
    'vm.restart': ({ params, body }) => restart(host, params.name, body),
    'vm.pause': ({ params }) => pause(host, params.name),
    'vm.resume': ({ params }) => resume(host, params.name),
    'vm.standby': ({ params }) => standby(host, params.name),
    'vm.restore': ({ params }) => restore(host, params.name),
    'vm.fork': {
      first: ({ params, body }, claim) => fork(host, params.name, body, claim),
      again: (made) => forkedBefore(host, made),
    },
    'vm.wait': ({ params, query, signal }) => wait(host, params.name, query, signal),
    'vm.exec': ({ params, body, signal }) => execToEnd(host, params.name, body, signal),
    'vm.exec.stream': ({ params }) => exec.bind(null, host, uidOf(params.name)),
    'vm.attach': ({ params }) => attach.bind(null, host, uidOf(params.name)),
    'vm.forward': ({ params, query }) => dial.bind(null, host, uidOf(params.name), targetOf(query)),
    'vm.console': ({ params }) => viewConsole.bind(null, host, uidOf(params.name)),
    'vm.logs': ({ params, query, signal }) => sse(logs(host, params.name, query, signal), signal, (data) => ({ data })),
    'vm.copy.in': ({ params, query, request, signal }) =>
      copyIn(
        host,
        params.name,
        { path: query.path, owner: query.owner, archive: query.archive },
        bodyOf(request),
        signal,
      ),
    'vm.copy.out': async ({ params, query, request, signal }) => {
      const how = { path: query.path, follow: query.follow, sparse: query.sparse }
      return tar(await copyOut(host, params.name, how, signal), request, host.log)
    },
    'vm.stat': ({ params, query }) => stat(host, params.name, query.path, query.follow_links),
    'vm.files': ({ params, query }) => listFolder(host, params.name, query.path, query.limit),
    'vm.stats': ({ params }) => stats(host, params.name),
    'vm.proxy': ({ params, rest, base, request }) => proxy(host, params.name, { rest, base }, request),
  } satisfies Partial<Handlers>
}
