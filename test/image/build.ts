import { createHash } from 'node:crypto'
import { encodeHeader, padding } from '../../src/client/tar-header.ts'

const digest = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

/** One file of a tar. */
export const file = (name: string, data: string | Uint8Array): Buffer => {
  const bytes = Buffer.from(data as Uint8Array)
  const header = encodeHeader({ name, type: 'file', mode: 0o644, mtime: 0, uid: 0, gid: 0, size: bytes.length })
  return Buffer.concat([header, bytes, Buffer.alloc(padding(bytes.length))])
}

/** One sparse file of a tar, as GNU tar writes it (PAX 0.1): `map` is the offset and length of each piece of `data`. */
export const sparseFile = (name: string, size: number, map: readonly number[], data: string): Buffer => {
  const records = Object.entries({ major: 0, minor: 1, name, size, map: map.join(',') })
    .map(([key, value]) => {
      const rest = ` GNU.sparse.${key}=${value}\n`
      const length = [2, 3]
        .map((digits) => rest.length + digits)
        .find((sum) => String(sum).length + rest.length === sum)
      return `${length}${rest}`
    })
    .join('')
  const pax = file('pax', records)
  pax.write('x', 156)
  // The checksum of a header counts its own field as blanks.
  pax.fill(' ', 148, 156)
  const sum = pax.subarray(0, 512).reduce((all, byte) => all + byte, 0)
  pax.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return Buffer.concat([pax, file('data', data)])
}

/** An image of one layer as Jib writes it, without the end mark of a tar. */
export const saved = (config: Readonly<Record<string, unknown>>, layer: Uint8Array): Buffer => {
  const rootfs = { type: 'layers', diff_ids: [`sha256:${digest(layer)}`] }
  return Buffer.concat([
    file('layer.tar', layer),
    file('config.json', JSON.stringify({ os: 'linux', architecture: 'amd64', config, rootfs })),
    file('manifest.json', JSON.stringify([{ Config: 'config.json', RepoTags: ['x:1'], Layers: ['layer.tar'] }])),
  ])
}
