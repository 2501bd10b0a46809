import { dlopen, FFIType } from 'bun:ffi'
import { closeSync, readFileSync, writeSync } from 'node:fs'
import libraryPath from '../../dist/native/libaerie_host.so' with { type: 'file' }

/** `ABI_VERSION` of native/host/src/lib.rs. */
const ABI_VERSION = 1

/**
 * One line per export of native/host; units and errnos are documented there, and the typed functions of this folder are
 * the only callers.
 */
const SYMBOLS = {
  aerie_abi_version: { args: [], returns: 'i32' },
  aerie_layout: { args: ['ptr', 'u32'], returns: FFIType.i64_fast },
  aerie_close: { args: ['i32'], returns: 'i32' },
  aerie_dup_cloexec: { args: ['i32'], returns: 'i32' },
  aerie_set_cloexec: { args: ['i32', 'i32'], returns: 'i32' },
  aerie_set_nonblock: { args: ['i32', 'i32'], returns: 'i32' },
  aerie_kvm_probe: { args: ['ptr', 'u32'], returns: 'i32' },
  aerie_pidfd_open: { args: ['i32'], returns: 'i32' },
  aerie_pidfd_send_signal: { args: ['i32', 'i32'], returns: 'i32' },
  aerie_pidfd_exited: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  aerie_pidfd_reap: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  aerie_socketpair: { args: ['i32', 'ptr'], returns: 'i32' },
  aerie_unix_listen: { args: ['ptr', 'u32', 'u32', 'u32', 'u32', 'i32'], returns: 'i32' },
  aerie_peer: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  aerie_send_fds: { args: ['i32', 'ptr', 'u32', 'ptr', 'u32'], returns: 'i32' },
  aerie_recv_fds: { args: ['i32', 'ptr', 'u32', 'ptr', 'ptr'], returns: 'i32' },
  aerie_memfd_sealed: { args: ['ptr', 'u32', 'ptr', 'u32', 'i32'], returns: 'i32' },
  aerie_memfd_empty: { args: ['ptr', 'u32', 'i64'], returns: 'i32' },
  aerie_reflink: { args: ['i32', 'i32'], returns: 'i32' },
  aerie_copy_range: { args: ['i32', 'i64', 'i32', 'i64', 'u64'], returns: FFIType.i64_fast },
  aerie_punch_hole: { args: ['i32', 'i64', 'i64'], returns: 'i32' },
  aerie_seek_data: { args: ['i32', 'i64'], returns: FFIType.i64_fast },
  aerie_seek_hole: { args: ['i32', 'i64'], returns: FFIType.i64_fast },
  aerie_allocated_bytes: { args: ['i32'], returns: FFIType.i64_fast },
  aerie_flock_try: { args: ['i32', 'i32'], returns: 'i32' },
  aerie_fsync: { args: ['i32'], returns: 'i32' },
  aerie_rename_noreplace: { args: ['ptr', 'u32', 'ptr', 'u32'], returns: 'i32' },
  aerie_lchown: { args: ['ptr', 'u32', 'u32', 'u32'], returns: 'i32' },
  aerie_space: { args: ['ptr', 'u32', 'ptr', 'u32'], returns: 'i32' },
  aerie_llistxattr: { args: ['ptr', 'u32', 'ptr', 'u32'], returns: 'i32' },
  aerie_lgetxattr: { args: ['ptr', 'u32', 'ptr', 'u32', 'ptr', 'u32'], returns: 'i32' },
  aerie_socket_in: { args: ['i32', 'i32', 'i32', 'i32'], returns: 'i32' },
  aerie_bind: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  aerie_listen: { args: ['i32', 'i32'], returns: 'i32' },
  aerie_shutdown: { args: ['i32'], returns: 'i32' },
  aerie_socket_name: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  aerie_set_option: { args: ['i32', 'i32', 'i32', 'ptr', 'u32'], returns: 'i32' },
  aerie_send: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  aerie_receive: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  aerie_tap_open: { args: ['i32', 'ptr', 'u32', 'u32'], returns: 'i32' },
  aerie_tap_attach: { args: ['i32', 'ptr', 'u32', 'u32'], returns: 'i32' },
  aerie_netns_make: { args: ['ptr', 'u32'], returns: 'i32' },
  aerie_unmount: { args: ['ptr', 'u32'], returns: 'i32' },
  aerie_open_beneath: { args: ['i32', 'ptr', 'u32', 'i32', 'u32'], returns: 'i32' },
} as const

const open = (path: string) => dlopen(path, SYMBOLS).symbols
export type HostLibrary = ReturnType<typeof open>

const MFD_CLOEXEC = 1 // linux/memfd.h

/**
 * Loads the library from a file, also from one inside a compiled executable (`/$bunfs/…`), which the dynamic linker
 * cannot open. Bun would unpack such a file to a predictable name in `$TMPDIR` and leave it there; a memory file has no
 * name that anybody could have prepared.
 */
export const openHostLibrary = (path: string): HostLibrary => {
  const libc = dlopen('libc.so.6', { memfd_create: { args: ['ptr', 'u32'], returns: 'i32' } })
  const fd = libc.symbols.memfd_create(Buffer.from('aerie_host\0'), MFD_CLOEXEC)
  libc.close()
  if (fd < 0) throw new Error('Cannot make a memory file for the host library')
  try {
    const bytes = readFileSync(path)
    for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at)
    const library = open(`/proc/self/fd/${fd}`) // the mapping outlives the descriptor
    const version = library.aerie_abi_version()
    if (version !== ABI_VERSION) throw new Error(`The host library speaks version ${version}, not ${ABI_VERSION}`)
    return library
  } finally {
    closeSync(fd)
  }
}

let library: HostLibrary | undefined

/** Gives the library of this build, loaded when it is first asked for: `--version` never needs it. */
export const host = (): HostLibrary => (library ??= openHostLibrary(libraryPath))
