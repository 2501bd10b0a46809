import { Type, type Static } from '@sinclair/typebox'
import { named } from './schema.ts'
import { operation } from './operation.ts'
import { RUNNING_VM, VmRef } from './vm-ref.ts'
import { VmName } from './vm-spec.ts'

export const VmStats = named(
  'VmStats',
  Type.Object({
    name: VmName,
    uptime_ms: Type.Integer(),
    cpu: Type.Object({
      user_ms: Type.Integer(),
      system_ms: Type.Integer(),
      idle_ms: Type.Integer(),
      steal_ms: Type.Integer(),
      count: Type.Integer(),
    }),
    load: Type.Array(Type.Number()),
    memory: Type.Object({
      total: Type.Integer(),
      available: Type.Integer(),
      used: Type.Integer(),
      cached: Type.Integer(),
      swap: Type.Integer(),
    }),
    disks: Type.Array(
      Type.Object({ mount: Type.String(), size: Type.Integer(), used: Type.Integer(), available: Type.Integer() }),
    ),
    processes: Type.Integer(),
    network: Type.Array(
      Type.Object({
        network: Type.String(),
        mac_address: Type.String(),
        rx_bytes: Type.Integer(),
        tx_bytes: Type.Integer(),
        rx_packets: Type.Integer(),
        tx_packets: Type.Integer(),
      }),
      { description: 'What each card in a network received and sent since it was last made, counted on the host' },
    ),
    host: Type.Object({
      memory_bytes: Type.Union([Type.Integer(), Type.Null()], {
        description: 'Resident on the host, all processes of the vm',
      }),
      cpu_ms: Type.Union([Type.Integer(), Type.Null()]),
      disk_bytes: Type.Integer({ description: "Blocks that the vm's own disk takes" }),
    }),
  }),
)
export type VmStats = Static<typeof VmStats>

export const statsOperations = {
  'vm.stats': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/stats',
    detail: { tags: ['vm'], summary: 'Measures of the guest and of its processes on the host' },
    params: VmRef,
    response: { 200: VmStats },
    faults: RUNNING_VM,
    scope: 'read',
  }),
} as const
