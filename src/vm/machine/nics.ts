import type { GuestNic, OneNic } from '../../guest/session.ts'
import type { VmRow } from '../../store/schema.ts'
import type { GuestOf, Part } from './part.ts'

/** What a guest finds behind QEMU's user network, always (its documentation, "-netdev user"). */
const USER: GuestNic = { address: '10.0.2.15/24', gateway: '10.0.2.2', dns: ['10.0.2.3'] }

/** What the agent of a vm is told of its cards. */
const guestNics = ({ spec }: Pick<GuestOf, 'spec'>): readonly GuestNic[] => (spec.network.mode === 'user' ? [USER] : [])

const oneNic = ({ spec }: Pick<GuestOf, 'spec'>): OneNic => ({ mode: spec.network.mode === 'user' ? 'user' : 'none' })

/** The same for a guest that was restored, whose cards have the addresses of the guest that was saved. */
export const identityNics = (row: VmRow): { readonly network: OneNic; readonly nics: readonly GuestNic[] } => ({
  network: { ...oneNic(row), mac: row.mac },
  nics: guestNics(row).map((nic) => ({ ...nic, mac: row.mac })),
})

/** Brings the vm's network cards, where its network has any. */
export const nics: Part = {
  name: 'network cards',
  make: (_, row) => ({ nics: row.spec.network.mode === 'user' ? [{ kind: 'user', mac: row.mac }] : [] }),
  guest: (vm) => ({ network: oneNic(vm), nics: guestNics(vm) }),
}
