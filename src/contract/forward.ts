import { Type } from '@sinclair/typebox'
import { GuestPath } from './guest.ts'
import { operation } from './operation.ts'
import { ONE_VM, RUNNING_VM, VmRef } from './vm-ref.ts'

/**
 * Forward and console are raw: a binary message is bytes. In a forward an empty one ends its direction and leaves the
 * other open, as shutdown(2) does. A failure is a text message, the problem as JSON, and then the close, whose reason
 * is JSON, `{code, message}`, cut to what a close frame holds.
 */
export const RAW_END = new Uint8Array(0)

const tags = ['vm'] as const

export const forwardOperations = {
  'vm.forward': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/forward',
    detail: { tags, summary: 'One TCP or Unix connection into the guest over a WebSocket' },
    params: VmRef,
    query: Type.Object({
      port: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535 })),
      unix: Type.Optional(GuestPath),
    }),
    response: {},
    faults: RUNNING_VM,
    scope: 'exec',
    stream: 'websocket',
    socket: { kind: 'bytes' },
  }),
  'vm.console': operation({
    method: 'GET',
    path: '/ws/v1/vms/:name/console',
    detail: { tags, summary: 'The serial console, both ways, over a WebSocket' },
    params: VmRef,
    response: {},
    faults: ONE_VM,
    scope: 'exec',
    stream: 'websocket',
    socket: { kind: 'bytes' },
  }),
  'vm.proxy': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/agent/*',
    detail: { tags, summary: "Any method: HTTP to the workload's port; healthz to the agent" },
    params: VmRef,
    response: {},
    faults: [...RUNNING_VM, 'port_undeclared', 'proxy_failed', 'proxy_timeout', 'upgrade_unsupported'],
    scope: 'exec',
    anyMethod: true,
    stream: 'download',
  }),
} as const
