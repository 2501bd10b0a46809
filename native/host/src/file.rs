//! The content of open files: clone, copy, holes, locks, flush.

use libc::{c_int, c_long, c_uint, c_ulong};

use crate::call::{checked, error, narrow, result, run};

/// Bytes that one [`aerie_copy_range`] copies at most: some milliseconds of the event loop.
pub const COPY_BYTES_MAX: u64 = 4 * 1024 * 1024;

const FICLONE: c_ulong = 0x4004_9409; // linux/fs.h

/// Makes the whole of `to` share the blocks of `from`: ioctl_ficlone(2). EOPNOTSUPP: this file system has no
/// shared blocks; EXDEV: two file systems; EINVAL: not regular files. The caller copies then.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_reflink(to: c_int, from: c_int) -> i32 {
    // SAFETY: FICLONE takes a descriptor.
    narrow(result(unsafe {
        libc::syscall(libc::SYS_ioctl, to, FICLONE, c_long::from(from))
    }))
}

/// Copies at most `len` and at most [`COPY_BYTES_MAX`] bytes inside the kernel: copy_file_range(2). The bytes
/// copied; 0 at the end of `from`. EXDEV: two file systems, before Linux 5.19.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_copy_range(
    from: c_int,
    from_offset: i64,
    to: c_int,
    to_offset: i64,
    len: u64,
) -> i64 {
    let (mut from_offset, mut to_offset) = (from_offset, to_offset);
    let len = len.min(COPY_BYTES_MAX);
    let flags: c_uint = 0;
    // SAFETY: both offsets are alive over the call.
    result(unsafe {
        libc::syscall(
            libc::SYS_copy_file_range,
            from,
            &raw mut from_offset,
            to,
            &raw mut to_offset,
            len,
            flags,
        )
    })
}

/// Gives the blocks of `len` bytes from `offset` back; they read as zeros, and the file keeps its length:
/// fallocate(2), FALLOC_FL_PUNCH_HOLE. EOPNOTSUPP: this file system has no holes.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_punch_hole(fd: c_int, offset: i64, len: i64) -> i32 {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: integers only.
    narrow(result(unsafe {
        libc::syscall(libc::SYS_fallocate, fd, mode, offset, len)
    }))
}

/// Finds where data begins at or after `offset`: lseek(2), SEEK_DATA. ENXIO: no more data. Moves the file's position.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_seek_data(fd: c_int, offset: i64) -> i64 {
    // SAFETY: integers only.
    result(unsafe { libc::syscall(libc::SYS_lseek, fd, offset, libc::SEEK_DATA) })
}

/// Finds where a hole begins at or after `offset`; the end of the file counts as one: lseek(2), SEEK_HOLE. ENXIO:
/// `offset` is at or beyond the end.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_seek_hole(fd: c_int, offset: i64) -> i64 {
    // SAFETY: integers only.
    result(unsafe { libc::syscall(libc::SYS_lseek, fd, offset, libc::SEEK_HOLE) })
}

/// Bytes on disk of an open file, holes not counted (with reflinks: shared blocks count for each).
#[unsafe(no_mangle)]
pub extern "C" fn aerie_allocated_bytes(fd: c_int) -> i64 {
    run(|| {
        let blocks = stat(fd, libc::STATX_BLOCKS)?.stx_blocks; // of 512 bytes, always
        i64::try_from(blocks.saturating_mul(512)).map_err(|_| error(libc::EOVERFLOW))
    })
}

/// Tries flock(2): shared, or alone with `exclusive` ≠ 0. EWOULDBLOCK: somebody else has it. The lock belongs to the
/// open file and ends with its last descriptor, at the latest when the process dies.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_flock_try(fd: c_int, exclusive: c_int) -> i32 {
    let kind = if exclusive == 0 {
        libc::LOCK_SH
    } else {
        libc::LOCK_EX
    };
    // SAFETY: integers only.
    narrow(result(unsafe {
        libc::syscall(libc::SYS_flock, fd, kind | libc::LOCK_NB)
    }))
}

/// fsync(2). **Takes the device's time** (a disk's flush, many milliseconds under load): for small files whose
/// loss would break a promise, and for folders after a rename.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_fsync(fd: c_int) -> i32 {
    // SAFETY: integers only.
    narrow(result(unsafe { libc::syscall(libc::SYS_fsync, fd) }))
}

/// statx(2) of a descriptor.
pub(crate) fn stat(fd: c_int, mask: c_uint) -> Result<libc::statx, i64> {
    // SAFETY: all-zero bytes are a statx.
    let mut out: libc::statx = unsafe { core::mem::zeroed() };
    // SAFETY: the empty path means the descriptor; `out` is alive over the call.
    checked(result(unsafe {
        libc::syscall(
            libc::SYS_statx,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            mask,
            &raw mut out,
        )
    }))?;
    Ok(out)
}
