import { Type, type Static } from '@sinclair/typebox'
import { nounEvents } from './event.ts'
import { named } from './schema.ts'
import { Nothing, oneOf, operation, Timestamp } from './operation.ts'

export const Digest = Type.String({ pattern: '^sha256:[0-9a-f]{64}$' })
export const ImageName = Type.String({
  pattern: '^[a-z0-9]([a-z0-9._/:-]*[a-z0-9])?$',
  maxLength: 255,
  description: 'As an OCI reference, without a host: name[:tag]',
})
export const ImageRef = Type.Object({ name: Type.String({ minLength: 1, maxLength: 255 }) })

/** How an image wants to be run, in OCI's terms. */
export const ImageConfig = named(
  'ImageConfig',
  Type.Object({
    entrypoint: Type.Array(Type.String()),
    cmd: Type.Array(Type.String()),
    env: Type.Array(Type.String()),
    user: Type.String(),
    working_dir: Type.String(),
    stop_signal: Type.String(),
    exposed_ports: Type.Array(Type.String()),
  }),
)
export type ImageConfig = Static<typeof ImageConfig>

export const Image = named(
  'Image',
  Type.Object({
    name: Type.Union([Type.String(), Type.Null()]),
    digest: Digest,
    status: oneOf('pending', 'pulling', 'converting', 'ready', 'failed'),
    format: Type.String(),
    size_bytes: Type.Integer({ description: 'Of the root file system on this host' }),
    config: ImageConfig,
    created_at: Timestamp,
  }),
)
export type Image = Static<typeof Image>

/** Declares a limit of what an archive unpacks to, in MiB: the largest is 16 TiB. */
export const maxSize = (description: string) =>
  Type.Optional(Type.Integer({ minimum: 1, maximum: 16_777_216, description }))

export const imageEvents = nounEvents(
  'image',
  ['IMAGE_IMPORTED', 'IMAGE_DELETED'],
  Type.Object({ digest: Type.Optional(Type.String()) }),
)

const tags = ['image'] as const
/** Configuration that an import overrides; what is absent comes from the archive. Lists are JSON arrays of strings. */
export const ImageImportQuery = Type.Object({
  name: ImageName,
  entrypoint: Type.Optional(Type.String({ maxLength: 65_536, description: 'JSON array of strings' })),
  cmd: Type.Optional(Type.String({ maxLength: 65_536, description: 'JSON array of strings' })),
  env: Type.Optional(Type.String({ maxLength: 262_144, description: 'JSON array of KEY=value' })),
  user: Type.Optional(Type.String({ maxLength: 128 })),
  workdir: Type.Optional(Type.String({ maxLength: 4096, pattern: '^/' })),
  max_size_mb: maxSize('Most that the image may hold; holes of sparse files do not count (16384)'),
  max_entries: Type.Optional(
    Type.Integer({ minimum: 1, maximum: 4_000_000, description: 'Most files and folders of the archive (2000000)' }),
  ),
})
export type ImageImportQuery = Static<typeof ImageImportQuery>

export const imageOperations = {
  'image.import': operation({
    method: 'POST',
    path: '/api/v1/images/import',
    detail: {
      tags,
      summary: 'Make an image from a tar stream',
      description:
        'A root file system (docker export, debootstrap), or an image: an archive of docker save, or an OCI layout. What its `manifest.json` or `index.json` names decides; gzip, xz and zstd are seen through.',
    },
    query: ImageImportQuery,
    response: { 201: Image },
    scope: 'admin',
    stream: 'upload',
    faults: ['archive_invalid', 'archive_too_large', 'request_invalid', 'disk_exhausted', 'pack_failed'],
  }),
  'image.list': operation({
    method: 'GET',
    path: '/api/v1/images',
    detail: { tags, summary: 'List images' },
    response: { 200: Type.Array(Image) },
    faults: [],
    scope: 'read',
  }),
  'image.get': operation({
    method: 'GET',
    path: '/api/v1/images/:name',
    detail: { tags, summary: 'Show one image' },
    params: ImageRef,
    response: { 200: Image },
    faults: ['image_not_found', 'image_ambiguous'],
    scope: 'read',
  }),
  'image.delete': operation({
    method: 'DELETE',
    path: '/api/v1/images/:name',
    detail: { tags, summary: 'Delete a name, and the image with its last name' },
    params: ImageRef,
    response: { 204: Nothing },
    faults: ['image_not_found', 'image_ambiguous', 'image_in_use'],
    scope: 'admin',
  }),
} as const
