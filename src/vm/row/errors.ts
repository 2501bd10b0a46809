import { Type } from '@sinclair/typebox'
import { didYouMean } from '../../lib/reference.ts'
import { fault } from '../../lib/fault.ts'

/** What leads out of a state in which most verbs are refused. */
const WAYS_OUT: Readonly<Record<string, string>> = {
  paused: '`aerie resume NAME` runs it on',
  standby: '`aerie restore NAME` wakes it',
  stopped: '`aerie start NAME` starts it',
  crashed: '`aerie start NAME` starts it',
}

export const vmNotFound = fault(
  'vm_not_found',
  'not_found',
  { name: Type.String(), meant: Type.Optional(Type.Array(Type.String())) },
  (d) => `Cannot find vm "${d.name}"`,
  (d) => didYouMean(d.meant ?? [], '`aerie ps -a` lists the vms'),
)
export const vmAmbiguous = fault(
  'vm_ambiguous',
  'conflict',
  { name: Type.String(), matches: Type.Array(Type.String()) },
  (d) => `Cannot tell which vm "${d.name}" is: it fits ${d.matches.join(', ')}`,
  'Give more of the uid, or the name',
)
export const vmDamaged = fault(
  'vm_damaged',
  'conflict',
  { name: Type.String(), reason: Type.String() },
  (d) => `Cannot change vm "${d.name}": its record is damaged (${d.reason})`,
  (d) => `\`aerie rm -f ${d.name}\` deletes it; its files stand in the state folder until then`,
)
export const vmExists = fault(
  'vm_exists',
  'conflict',
  { name: Type.String() },
  (d) => `Cannot create vm "${d.name}": a vm of this name exists`,
  (d) => `Choose another name, or delete it with \`aerie rm ${d.name}\``,
)
export const vmWrongState = fault(
  'vm_wrong_state',
  'conflict',
  { name: Type.String(), status: Type.String(), verb: Type.String(), reason: Type.Optional(Type.String()) },
  (d) => `Cannot ${d.verb} vm "${d.name}": it is ${d.status}${d.reason === undefined ? '' : ` (${d.reason})`}`,
  (d) => WAYS_OUT[d.status]?.replaceAll('NAME', d.name),
)
export const machineSilent = fault(
  'machine_silent',
  'timeout',
  { name: Type.String(), verb: Type.String() },
  (d) => `Cannot ${d.verb} vm "${d.name}": its machine does not answer in time`,
  'Its disk may be slow: try again; the guest goes on as soon as its machine answers',
)
export const vmStartFailed = fault(
  'vm_start_failed',
  'internal',
  { name: Type.String(), reason: Type.String() },
  (d) => `Cannot start vm "${d.name}": ${d.reason}`,
  'The last lines of its console stand in the event VM_CREATE_FAILED or in `aerie logs --source console`',
)
export const vmRestoreFailed = fault(
  'vm_restore_failed',
  'internal',
  { name: Type.String(), reason: Type.String() },
  (d) => `Cannot restore vm "${d.name}": ${d.reason}`,
  'What was saved is kept: try again, or `aerie stop` lets it go, and `aerie start` boots the vm from its disk',
)
export const vmEnded = fault(
  'vm_ended',
  'conflict',
  { name: Type.String(), status: Type.String(), reason: Type.String() },
  (d) => `Cannot wait for vm "${d.name}" any longer: it is ${d.status}${d.reason ? ` (${d.reason})` : ''}`,
)
export const vmDeleted = fault(
  'vm_deleted',
  'conflict',
  { name: Type.String() },
  (d) => `Vm "${d.name}" was deleted meanwhile`,
)
export const stopTimeout = fault(
  'stop_timeout',
  'timeout',
  { name: Type.String(), seconds: Type.Number() },
  (d) => `Cannot stop vm "${d.name}" in ${d.seconds} s: the guest did not power off`,
  'Stop it without `--no-kill`, or give it more time with `--time`',
)
export const waitTimeout = fault(
  'wait_timeout',
  'timeout',
  { name: Type.String(), for: Type.String(), status: Type.String(), seconds: Type.Number() },
  (d) => `Vm "${d.name}" was not ${d.for} within ${d.seconds} s: it is ${d.status}`,
)
export const capacityExhausted = fault(
  'capacity_exhausted',
  'exhausted',
  {
    resource: Type.String(),
    unit: Type.String(),
    asked: Type.Integer(),
    limit: Type.Integer(),
    allocated: Type.Integer(),
  },
  (d) =>
    `Cannot place this vm: it asks for ${d.asked} ${d.unit} of ${d.resource}, and ${d.allocated} of ${d.limit} are taken`,
  'Stop a vm, ask for less, or raise the limit in aerie.toml',
)
export const workloadMissing = fault(
  'workload_missing',
  'invalid',
  { image: Type.String() },
  (d) => `Cannot hold the workload of image "${d.image}": neither the image nor the request names a command`,
  'Name one after `--`',
)
export const filterInvalid = fault(
  'filter_invalid',
  'invalid',
  { filter: Type.String(), reason: Type.String() },
  (d) => `Cannot filter by ${d.filter}: ${d.reason}`,
)
export const sinceInvalid = fault(
  'since_invalid',
  'invalid',
  { since: Type.String() },
  (d) => `Cannot read the time "${d.since}"`,
  'Give RFC 3339 (2026-11-21T10:00:00Z) or a duration back from now (5m)',
)
export const portUndeclared = fault(
  'port_undeclared',
  'conflict',
  { name: Type.String() },
  (d) => `Cannot proxy to vm "${d.name}": it declares no port`,
  'Create it with `--port`, or use `aerie forward`',
)
export const proxyFailed = fault(
  'proxy_failed',
  'gateway',
  { name: Type.String(), port: Type.Integer(), reason: Type.String() },
  (d) => `Cannot reach port ${d.port} in vm "${d.name}": ${d.reason}`,
)
export const proxyTimeout = fault(
  'proxy_timeout',
  'timeout',
  { name: Type.String(), port: Type.Integer(), seconds: Type.Number() },
  (d) => `Cannot wait for port ${d.port} in vm "${d.name}": it did not answer within ${d.seconds} s`,
  '`aerie forward` waits for ever',
)
export const upgradeUnsupported = fault(
  'upgrade_unsupported',
  'invalid',
  { name: Type.String() },
  (d) => `Cannot upgrade a connection through the agent proxy of vm "${d.name}"`,
  '`aerie forward` carries any protocol',
)
