import { Type, type Static } from '@sinclair/typebox'
import { GuestPath } from './guest.ts'
import { defaulted, named } from './schema.ts'
import { oneOf, operation } from './operation.ts'
import { RUNNING_VM, VmRef } from './vm-ref.ts'

export const FileStat = named(
  'FileStat',
  Type.Object({
    exists: Type.Boolean(),
    is_dir: Type.Boolean(),
    is_file: Type.Boolean(),
    is_symlink: Type.Boolean(),
    link_target: Type.Union([Type.String(), Type.Null()]),
    mode: Type.Integer(),
    size: Type.Integer(),
    uid: Type.Integer(),
    gid: Type.Integer(),
    mtime_ms: Type.Integer(),
  }),
)
export type FileStat = Static<typeof FileStat>
export const FileList = named(
  'FileList',
  Type.Object({
    entries: Type.Array(Type.Composite([Type.Object({ name: Type.String() }), FileStat])),
    truncated: Type.Boolean(),
  }),
)

const tags = ['vm'] as const

export const fileOperations = {
  'vm.copy.in': operation({
    method: 'PUT',
    path: '/api/v1/vms/:name/files',
    detail: { tags, summary: 'Unpack a tar stream into a folder of the guest' },
    params: VmRef,
    query: Type.Object({
      path: GuestPath,
      owner: defaulted(oneOf('keep', 'root'), 'keep'),
      archive: defaulted(
        Type.Boolean({
          description:
            'Also set-id bits, file capabilities and devices; what exists takes the owner and mode that the archive has',
        }),
        false,
      ),
    }),
    response: { 200: Type.Object({ entries: Type.Integer(), bytes: Type.Integer() }) },
    faults: [...RUNNING_VM, 'guest_path_not_found', 'guest_refused', 'archive_invalid'],
    scope: 'exec',
    stream: 'upload',
  }),
  'vm.copy.out': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/files',
    detail: { tags, summary: 'A file or folder of the guest as a tar stream' },
    params: VmRef,
    query: Type.Object({
      path: GuestPath,
      follow: defaulted(Type.Boolean(), false),
      sparse: defaulted(
        Type.Boolean({ description: 'Leave holes of files out, as PAX 1.0 sparse files of GNU tar' }),
        false,
      ),
    }),
    response: {},
    faults: [...RUNNING_VM, 'guest_path_not_found', 'guest_refused'],
    scope: 'exec',
    stream: 'download',
  }),
  'vm.stat': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/stat',
    detail: { tags, summary: 'What stands at a path of the guest' },
    params: VmRef,
    query: Type.Object({ path: GuestPath, follow_links: defaulted(Type.Boolean(), false) }),
    response: { 200: FileStat },
    faults: [...RUNNING_VM, 'guest_refused'],
    scope: 'exec',
  }),
  'vm.files': operation({
    method: 'GET',
    path: '/api/v1/vms/:name/list',
    detail: { tags, summary: 'The entries of a folder of the guest' },
    params: VmRef,
    query: Type.Object({
      path: GuestPath,
      limit: defaulted(Type.Integer({ minimum: 1, maximum: 10_000 }), 1000),
    }),
    response: { 200: FileList },
    faults: [...RUNNING_VM, 'guest_path_not_found', 'guest_refused'],
    scope: 'exec',
  }),
} as const
