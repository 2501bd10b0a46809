//! Freezing file systems around a snapshot, so that what is on disk is what the snapshot's memory believes.
//!
//! A freeze that is never undone would hang the guest for ever, so it ends by itself: see `power`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::sys::{check, ioctl_request};

/// `_IOWR('X', 119, int)` and 120, include/uapi/linux/fs.h.
const FIFREEZE: u32 = 0xC004_5877;
const FITHAW: u32 = 0xC004_5878;

/// Flushes the file system that `folder` is on and holds all writers. Frozen already is fine.
///
/// # Errors
/// What the kernel says.
pub fn freeze(folder: &File) -> io::Result<()> {
    set(folder, FIFREEZE, libc::EBUSY)
}

/// Lets the writers go on. Not frozen is fine.
///
/// # Errors
/// What the kernel says.
pub fn thaw(folder: &File) -> io::Result<()> {
    set(folder, FITHAW, libc::EINVAL)
}

fn set(folder: &File, request: u32, done_already: i32) -> io::Result<()> {
    // SAFETY: both ioctls ignore their argument.
    match check(unsafe { libc::ioctl(folder.as_raw_fd(), ioctl_request(request), 0) }) {
        Err(error) if error.raw_os_error() == Some(done_already) => Ok(()),
        other => other.map(drop),
    }
}
