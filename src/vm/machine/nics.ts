import type { Part } from './part.ts'

/** Brings the vm's network card, where its network has one. */
export const nics: Part = {
  name: 'network cards',
  make: (_, row) => ({ nics: row.spec.network.mode === 'user' ? [{ kind: 'user', mac: row.mac }] : [] }),
  guest: ({ spec }) => ({ network: { mode: spec.network.mode === 'user' ? 'user' : 'none' } }),
}
