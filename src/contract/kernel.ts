import { Type, type Static } from '@sinclair/typebox'
import { nounEvents } from './event.ts'
import { named } from './schema.ts'
import { Nothing, oneOf, operation, Timestamp } from './operation.ts'
import { Digest, maxSize } from './image.ts'

export const KernelRef = Type.Object({ name: Type.String({ minLength: 1, maxLength: 128 }) })
export const Kernel = named(
  'Kernel',
  Type.Object({
    digest: Digest,
    name: Type.String(),
    version: Type.String(),
    format: oneOf('bzimage', 'vmlinux'),
    modules: Type.Array(Type.String(), { description: 'What the initramfs carries, in load order' }),
    size_bytes: Type.Integer(),
    default: Type.Boolean(),
    created_at: Timestamp,
  }),
)
export type Kernel = Static<typeof Kernel>

export const kernelEvents = nounEvents(
  'kernel',
  ['KERNEL_IMPORTED', 'KERNEL_DELETED'],
  Type.Object({ digest: Type.Optional(Type.String()) }),
)

const tags = ['kernel'] as const
export const kernelOperations = {
  'kernel.import': operation({
    method: 'POST',
    path: '/api/v1/kernels/import',
    detail: {
      tags,
      summary: 'Take a guest kernel',
      description: 'A Debian package, or a tar of vmlinuz or vmlinux and lib/modules/VERSION.',
    },
    query: Type.Object({
      name: Type.Optional(Type.String({ pattern: '^[A-Za-z0-9][A-Za-z0-9._+-]*$', maxLength: 128 })),
      default: Type.Optional(Type.Boolean({ default: false })),
      max_size_mb: maxSize('Most that the archive may unpack to (4096)'),
    }),
    response: { 201: Kernel },
    scope: 'admin',
    stream: 'upload',
    faults: [
      'archive_invalid',
      'archive_too_large',
      'kernel_module_missing',
      'kernel_missing',
      'disk_exhausted',
      'pack_failed',
    ],
  }),
  'kernel.list': operation({
    method: 'GET',
    path: '/api/v1/kernels',
    detail: { tags, summary: 'List kernels' },
    response: { 200: Type.Array(Kernel) },
    faults: [],
    scope: 'read',
  }),
  'kernel.get': operation({
    method: 'GET',
    path: '/api/v1/kernels/:name',
    detail: { tags, summary: 'Show one kernel' },
    params: KernelRef,
    response: { 200: Kernel },
    faults: ['kernel_not_found', 'kernel_ambiguous'],
    scope: 'read',
  }),
  'kernel.delete': operation({
    method: 'DELETE',
    path: '/api/v1/kernels/:name',
    detail: { tags, summary: 'Delete a kernel that no vm uses' },
    params: KernelRef,
    response: { 204: Nothing },
    faults: ['kernel_not_found', 'kernel_ambiguous', 'kernel_in_use'],
    scope: 'admin',
  }),
} as const
