import { Type } from '@sinclair/typebox'
import { fault } from '../lib/fault.ts'

export const hypervisorUnavailable = fault(
  'hypervisor_unavailable',
  'unavailable',
  { hypervisor: Type.String(), reason: Type.String() },
  (d) => `Cannot use hypervisor "${d.hypervisor}": ${d.reason}`,
  'Run `aerie doctor` to see what this host lacks',
)
export const hypervisorUnable = fault(
  'hypervisor_unable',
  'conflict',
  { hypervisor: Type.String(), verb: Type.String() },
  (d) => `Cannot ${d.verb} this vm: hypervisor "${d.hypervisor}" cannot save a running machine`,
  '`aerie doctor` says which hypervisors this host has',
)
export const snapshotFailed = fault(
  'snapshot_failed',
  'internal',
  { reason: Type.String() },
  (d) => `Cannot save the machine: ${d.reason}`,
)
export const machineFailed = fault(
  'machine_failed',
  'internal',
  { hypervisor: Type.String(), reason: Type.String() },
  (d) => `Cannot start the machine: ${d.hypervisor}: ${d.reason}`,
)
export const agentUnavailable = fault(
  'agent_unavailable',
  'unavailable',
  { reason: Type.String() },
  (d) => `Cannot reach the agent in the guest: ${d.reason}`,
  'Look at `aerie logs --source console`, or restart the vm',
)
