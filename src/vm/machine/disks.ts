import { pathsOf } from '../row/layout.ts'
import type { Part } from './part.ts'

/** Brings the image's file system, read-only and shared by every vm of that image. */
export const rootDisk: Part = {
  name: 'root disk',
  make: (host, row) => ({
    disks: [{ path: host.images.pathOf(host.images.byDigest(row.imageDigest)), readOnly: true, serial: 'root' }],
  }),
}

/** Brings the vm's own disk, which takes what its guest writes. */
export const overlayDisk: Part = {
  name: 'overlay disk',
  make: (host, row) => ({
    disks: [{ path: pathsOf(host.config, row).overlay, readOnly: false, serial: 'overlay' }],
  }),
  guest: ({ spec }) => ({ root: { mode: 'overlay', overlay_size_bytes: spec.storage.disk_mb * 2 ** 20 } }),
}
