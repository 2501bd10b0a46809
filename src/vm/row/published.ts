import type { VmSpec } from '../../contract/vm-spec.ts'
import type { Host } from '../../host.ts'
import { requestInvalid } from '../../lib/errors.ts'
import { type HeldPort, holdPorts, readPublished } from '../../network/ports.ts'
import type { NetworkRow } from '../../store/schema.ts'
import type { Planned } from './cards.ts'

/** Checks that a vm whose first card is in this network may publish ports. @throws `request_invalid` */
export const checkPublishes = (
  { publish }: Pick<VmSpec, 'publish'>,
  network: Pick<NetworkRow, 'bridge' | 'type'> | undefined,
): void => {
  if (publish.length > 0 && (network === undefined || network.bridge === null || network.type === 'isolated'))
    throw requestInvalid({
      field: 'publish',
      reason: 'only a vm whose first card is in a bridged or host-only network publishes ports',
    })
}

/**
 * Takes the ports of the host that a vm is to publish, before there is a vm: what somebody else has is found out by
 * trying.
 *
 * @throws `port_in_use`, `port_denied`, `request_invalid`
 */
export const holdPublished = (
  host: Pick<Host, 'store'>,
  spec: Pick<VmSpec, 'publish'>,
  [first]: readonly Planned[],
): HeldPort[] => {
  checkPublishes(spec, first?.network)
  return spec.publish.length === 0 ? [] : holdPorts(host.store, readPublished(spec.publish))
}
