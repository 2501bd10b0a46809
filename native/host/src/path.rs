//! Names in the file system: rename, owner, free space, and opening below a folder.

use libc::c_int;

use crate::call::{Path, narrow, out, result, run};
use crate::fd::Owned;

/// Room on a file system: statfs(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    pub bytes_total: u64,
    /// Free, with what is reserved for root.
    pub bytes_free: u64,
    /// Free for an ordinary user.
    pub bytes_available: u64,
    /// Which file system: linux/magic.h.
    pub magic: u64,
}

/// Renames, unless there is something at `to`: renameat2(2), RENAME_NOREPLACE. EEXIST; EINVAL: this file system
/// cannot promise it; EXDEV: two file systems.
///
/// # Safety
/// Both pointers are null or valid for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_rename_noreplace(
    from: *const u8,
    from_len: u32,
    to: *const u8,
    to_len: u32,
) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let (from, to) = unsafe { (Path::new(from, from_len)?, Path::new(to, to_len)?) };
        let cwd = libc::AT_FDCWD;
        let flags = libc::RENAME_NOREPLACE;
        // SAFETY: both paths end in NUL.
        Ok(result(unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                cwd,
                from.as_ptr(),
                cwd,
                to.as_ptr(),
                flags,
            )
        }))
    }))
}

/// Changes the owner of `path` itself, not of what a link points to: lchown(2). 4294967295 leaves an id as it is.
///
/// # Safety
/// `path` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_lchown(path: *const u8, len: u32, uid: u32, gid: u32) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { Path::new(path, len) }?;
        let (cwd, flags) = (libc::AT_FDCWD, libc::AT_SYMLINK_NOFOLLOW);
        // SAFETY: the path ends in NUL.
        Ok(result(unsafe {
            libc::syscall(libc::SYS_fchownat, cwd, path.as_ptr(), uid, gid, flags)
        }))
    }))
}

/// Fills `space`, whose size is `space_len`, for the file system of `path`.
///
/// # Safety
/// Both pointers are null or valid for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_space(
    path: *const u8,
    len: u32,
    space: *mut Space,
    space_len: u32,
) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise; every byte pattern is a Space.
        let (path, space) = unsafe { (Path::new(path, len)?, out(space, space_len)?) };
        // SAFETY: all-zero bytes are a statfs.
        let mut stat: libc::statfs = unsafe { core::mem::zeroed() };
        // SAFETY: the path ends in NUL; `stat` has the kernel's layout on 64 bits and is alive over the call.
        let ret = result(unsafe { libc::syscall(libc::SYS_statfs, path.as_ptr(), &raw mut stat) });
        let block = stat.f_bsize.cast_unsigned();
        *space = Space {
            bytes_total: stat.f_blocks.saturating_mul(block),
            bytes_free: stat.f_bfree.saturating_mul(block),
            bytes_available: stat.f_bavail.saturating_mul(block),
            magic: stat.f_type.cast_unsigned(),
        };
        Ok(ret)
    }))
}

/// Opens `path` below the folder `folder`: openat2(2), Linux 5.6, with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and
/// RESOLVE_NO_MAGICLINKS. `flags` are open(2)'s; O_CLOEXEC, O_NOCTTY and O_NONBLOCK are added, the last one because
/// a FIFO that somebody left there would stop the event loop (regular files ignore it). `mode` only with O_CREAT.
/// EXDEV: the path leads out (`..`, absolute); ELOOP: a link in it; EAGAIN: a rename raced, try again.
///
/// # Safety
/// `path` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_open_beneath(
    folder: c_int,
    path: *const u8,
    len: u32,
    flags: c_int,
    mode: u32,
) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { Path::new(path, len) }?;
        let resolve =
            libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
        let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
        // struct open_how, linux/openat2.h: flags, mode, resolve
        let how: [u64; 3] = [u64::from(flags.cast_unsigned()), u64::from(mode), resolve];
        let bytes = size_of_val(&how);
        // SAFETY: the path ends in NUL; `how` has its size and is alive over the call.
        Ok(Owned::take(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                folder,
                path.as_ptr(),
                how.as_ptr(),
                bytes,
            )
        })?
        .give())
    }))
}

/// `/proc/self/fd/N` with a NUL.
pub(crate) fn proc_self_fd(fd: c_int) -> [u8; 32] {
    const PREFIX: &[u8] = b"/proc/self/fd/";
    let mut digits = [0_u8; 10];
    let mut rest = fd.unsigned_abs();
    let mut count = 0_usize;
    for digit in &mut digits {
        *digit = b'0'.saturating_add(u8::try_from(rest % 10).unwrap_or(0));
        rest /= 10;
        count = count.saturating_add(1);
        if rest == 0 {
            break;
        }
    }
    let mut name = [0; 32];
    let text = PREFIX.iter().chain(digits.iter().take(count).rev());
    for (to, from) in name.iter_mut().zip(text) {
        *to = *from;
    }
    name
}
