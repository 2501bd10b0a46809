import { Type } from '@sinclair/typebox'
import { fault } from '../lib/fault.ts'

export const hypervisorUnavailable = fault('hypervisor_unavailable', 'unavailable',
  { hypervisor: Type.String(), reason: Type.String() },
  (d) => `Cannot use hypervisor "${d.hypervisor}": ${d.reason}`, 'Run `aerie doctor` to see what this host lacks')
export const machineFailed = fault('machine_failed', 'internal', { hypervisor: Type.String(), reason: Type.String() },
  (d) => `Cannot start the machine: ${d.hypervisor}: ${d.reason}`)
export const agentUnavailable = fault('agent_unavailable', 'unavailable', { reason: Type.String() },
  (d) => `Cannot reach the agent in the guest: ${d.reason}`, 'Look at `aerie logs --source console`, or restart the vm')
