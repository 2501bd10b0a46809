import type { NetworkRow } from '../store/schema.ts'
import { inPrefix6, readPrefix6, readRange4, sayV6 } from './address.ts'

/** A network that stands on a bridge of its own. */
export type Bridged = NetworkRow & { readonly bridge: string }

/** Whether a network stands on a bridge of its own. */
export const hasBridge = (row: NetworkRow): row is Bridged => row.bridge !== null

/** The host's IPv6 address in a network. */
export const gateway6Of = (row: Pick<NetworkRow, 'subnet6'>): string | null => {
  const prefix = row.subnet6 === null ? undefined : readPrefix6(row.subnet6)
  return prefix ? sayV6(inPrefix6(prefix, 1)) : null
}

/** The length of a network's IPv4 prefix. */
export const lengthOf = (row: Pick<NetworkRow, 'subnet'>): number | undefined =>
  row.subnet === null ? undefined : readRange4(row.subnet)?.length
