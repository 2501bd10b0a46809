import { Type } from '@sinclair/typebox'
import { fault } from '../lib/fault.ts'
import { didYouMean } from '../lib/reference.ts'

const Name = { name: Type.String() }

export const networkNotFound = fault(
  'network_not_found',
  'not_found',
  { ...Name, meant: Type.Array(Type.String()) },
  (d) => `There is no network "${d.name}"`,
  (d) => didYouMean(d.meant, '"aerie network ls" lists them, "aerie network create" makes one'),
)
export const networkAmbiguous = fault(
  'network_ambiguous',
  'conflict',
  { ...Name, matches: Type.Array(Type.String()) },
  (d) => `"${d.name}" begins the ids of several networks: ${d.matches.join(', ')}`,
  'Write more of the id, or the name',
)
export const networkExists = fault(
  'network_exists',
  'conflict',
  Name,
  (d) => `Cannot make network "${d.name}": there is one of this name`,
  '"aerie network update" changes it',
)
export const networkInvalid = fault(
  'network_invalid',
  'invalid',
  { ...Name, reason: Type.String(), hint: Type.Optional(Type.String()) },
  (d) => `Cannot use network "${d.name}" so: ${d.reason}`,
  (d) => d.hint,
)
export const networkConflict = fault(
  'network_conflict',
  'conflict',
  { ...Name, reason: Type.String(), hint: Type.Optional(Type.String()) },
  (d) => `Cannot make network "${d.name}": ${d.reason}`,
  (d) => d.hint,
)
export const networkUnable = fault(
  'network_unable',
  'unavailable',
  { reason: Type.String(), hint: Type.String() },
  (d) => `Cannot use networks on this host: ${d.reason}`,
  (d) => d.hint,
)
export const networkInUse = fault(
  'network_in_use',
  'conflict',
  { ...Name, users: Type.Array(Type.String()) },
  (d) =>
    `Cannot delete network "${d.name}": ${d.users.slice(0, 5).join(', ')} ${d.users.length === 1 ? 'is' : 'are'} in it`,
  'Delete them first, or detach them',
)
export const networkExhausted = fault(
  'network_exhausted',
  'exhausted',
  { ...Name, total: Type.Integer(), used: Type.Integer() },
  (d) => `Network "${d.name}" has no address left: ${d.used} of ${d.total} are in use`,
  'Delete vms that are not needed, or make a larger network',
)
export const networkAddressTaken = fault(
  'network_address_taken',
  'conflict',
  { address: Type.String(), network: Type.String(), by: Type.String() },
  (d) => `Cannot use ${d.address} in network "${d.network}": ${d.by}`,
  'Leave the address out to get one that is free',
)

const PortData = { port: Type.Integer(), protocol: Type.String(), address: Type.String(), by: Type.String() }
export const portInUse = fault(
  'port_in_use',
  'conflict',
  PortData,
  (d) => `Cannot publish port ${d.port}/${d.protocol} of ${d.address}: ${d.by} has it`,
  'Choose another port, or 0 for one that is free; "aerie port ls" lists those of vms',
)
export const portDenied = fault(
  'port_denied',
  'forbidden',
  { port: Type.Integer() },
  (d) => `Cannot publish port ${d.port}: this daemon may not use ports below 1024`,
  'Choose a higher port, or run the daemon as root',
)
const Attached = { name: Type.String(), network: Type.String() }
export const attachmentExists = fault(
  'attachment_exists',
  'conflict',
  { ...Attached, kind: Type.String() },
  (d) => `Cannot attach container "${d.name}" to network "${d.network}": there is a ${d.kind} of this name`,
  'Choose another name: it is what the others of the network find it by',
)
export const attachmentNotFound = fault(
  'attachment_not_found',
  'not_found',
  Attached,
  (d) => `There is no container "${d.name}" in network "${d.network}"`,
  '"aerie network inspect" lists them',
)
