import { Elysia } from 'elysia'
import { operations as op } from '../contract/operations.ts'
import type { Host } from '../host.ts'
import { create } from '../vm/create.ts'
import { remove } from '../vm/delete.ts'
import { run } from '../vm/exec.ts'
import { copyIn, copyOut, listFolder, stat } from '../vm/files.ts'
import { fork } from '../vm/fork.ts'
import { logs } from '../vm/logs.ts'
import { pause } from '../vm/pause.ts'
import { resume } from '../vm/resume.ts'
import { proxy } from '../vm/proxy.ts'
import { find } from '../vm/row/lookup.ts'
import { listJson } from '../vm/row/list.ts'
import { view } from '../vm/row/view.ts'
import { restore } from '../vm/restore.ts'
import { standby } from '../vm/standby.ts'
import { start } from '../vm/start.ts'
import { stats } from '../vm/stats.ts'
import { restart } from '../vm/restart.ts'
import { stop } from '../vm/stop.ts'
import { wait } from '../vm/wait.ts'
import { hook, json, noContent, sse } from './answer.ts'

/** No logic: a handler names its operation and calls one verb. */
export const vmRoutes = (host: Host) =>
  new Elysia({ name: 'http/vm', normalize: false, strictPath: true })
    .post(
      op['vm.create'].path,
      async ({ body, request }) =>
        json(await create(host, body, request.headers.get('idempotency-key') ?? undefined), 201),
      hook(op['vm.create']),
    )
    .get(
      op['vm.list'].path,
      ({ query }) => {
        const { json: text, total } = listJson(host.store, query)
        return new Response(text, { headers: { 'content-type': 'application/json', 'x-total-count': String(total) } })
      },
      hook(op['vm.list']),
    )
    .get(op['vm.get'].path, ({ params }) => json(view(find(host.store, params.name))), hook(op['vm.get']))
    .delete(
      op['vm.delete'].path,
      async ({ params }) => {
        await remove(host, params.name)
        return noContent()
      },
      hook(op['vm.delete']),
    )
    .post(
      op['vm.start'].path,
      async ({ params, body }) => json(await start(host, params.name, body ?? {})),
      hook(op['vm.start']),
    )
    .post(
      op['vm.stop'].path,
      async ({ params, body }) => json(await stop(host, params.name, body ?? {})),
      hook(op['vm.stop']),
    )
    .post(
      op['vm.restart'].path,
      async ({ params, body }) => json(await restart(host, params.name, body ?? {})),
      hook(op['vm.restart']),
    )
    .post(op['vm.pause'].path, async ({ params }) => json(await pause(host, params.name)), hook(op['vm.pause']))
    .post(op['vm.resume'].path, async ({ params }) => json(await resume(host, params.name)), hook(op['vm.resume']))
    .post(op['vm.standby'].path, async ({ params }) => json(await standby(host, params.name)), hook(op['vm.standby']))
    .post(op['vm.restore'].path, async ({ params }) => json(await restore(host, params.name)), hook(op['vm.restore']))
    .post(
      op['vm.fork'].path,
      async ({ params, body }) => json(await fork(host, params.name, body ?? {}), 201),
      hook(op['vm.fork']),
    )
    .get(
      op['vm.wait'].path,
      async ({ params, query, request }) => json(await wait(host, params.name, query, request.signal)),
      hook(op['vm.wait']),
    )
    .post(
      op['vm.exec'].path,
      async ({ params, body, request }) => json(await run(host, params.name, body, request.signal)),
      hook(op['vm.exec']),
    )
    .get(
      op['vm.logs'].path,
      ({ params, query, request }) =>
        sse(logs(host, params.name, query, request.signal), request.signal, (line) => ({ data: line })),
      hook(op['vm.logs']),
    )
    .put(
      op['vm.copy.in'].path,
      async ({ params, query, request }) =>
        json(
          await copyIn(
            host,
            params.name,
            query.path,
            query.owner ?? 'keep',
            request.body ?? new Blob([]).stream(),
            request.signal,
          ),
        ),
      hook(op['vm.copy.in'], 'none'),
    )
    .get(
      op['vm.copy.out'].path,
      async ({ params, query, request }) => {
        const out = await copyOut(host, params.name, query.path, query.follow ?? false, request.signal)
        return new Response(out.stream, {
          headers: {
            'content-type': 'application/x-tar',
            'x-aerie-name': encodeURIComponent(out.name),
            'x-aerie-is-dir': String(out.isDir),
          },
        })
      },
      hook(op['vm.copy.out']),
    )
    .get(
      op['vm.stat'].path,
      async ({ params, query }) => json(await stat(host, params.name, query.path, query.follow_links ?? false)),
      hook(op['vm.stat']),
    )
    .get(
      op['vm.files'].path,
      async ({ params, query }) => json(await listFolder(host, params.name, query.path, query.limit ?? 1000)),
      hook(op['vm.files']),
    )
    .get(op['vm.stats'].path, async ({ params }) => json(await stats(host, params.name)), hook(op['vm.stats']))
    .all(op['vm.proxy'].path, async ({ params, request }) => await proxy(host, params, request), { parse: 'none' })
