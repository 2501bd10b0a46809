import type { VmSpec } from '../../contract/vm-spec.ts'
import type { Host } from '../../host.ts'
import { requestInvalid } from '../../lib/errors.ts'
import { type HeldPort, holdPorts, readPublished } from '../../network/ports.ts'
import type { Planned } from './cards.ts'

/**
 * Takes the ports of the host that a vm is to publish, before there is a vm: what somebody else has is found out by trying.
 *
 * @throws `port_in_use`, `port_denied`, `request_invalid`
 */
export const holdPublished = (
  host: Pick<Host, 'store'>,
  { publish }: Pick<VmSpec, 'publish'>,
  [first]: readonly Planned[],
): HeldPort[] => {
  if (publish.length === 0) return []
  if (first === undefined || first.network.bridge === null || first.network.type === 'isolated')
    throw requestInvalid({
      field: 'publish',
      reason: 'only a vm whose first card is in a bridged or host-only network publishes ports',
    })
  return holdPorts(host.store, readPublished(publish))
}
