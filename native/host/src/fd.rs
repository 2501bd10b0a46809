//! Descriptors: close, copy, flags.

use libc::c_int;

use crate::call::{narrow, result};

/// close(2). After any error but EBADF the descriptor is closed nevertheless: never try again.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_close(fd: c_int) -> i32 {
    // SAFETY: a number; who owns it is the caller's business.
    narrow(result(unsafe { libc::syscall(libc::SYS_close, fd) }))
}

/// A close-on-exec copy of `fd`, at the lowest free number: fcntl(2), F_DUPFD_CLOEXEC.
/// EBADF, EMFILE (the limit of open files).
#[unsafe(no_mangle)]
pub extern "C" fn aerie_dup_cloexec(fd: c_int) -> i32 {
    fcntl(fd, libc::F_DUPFD_CLOEXEC, 0)
}

/// Sets (`on` ≠ 0) or clears close-on-exec: fcntl(2), F_SETFD. EBADF.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_set_cloexec(fd: c_int, on: c_int) -> i32 {
    set(
        fd,
        (libc::F_GETFD, libc::F_SETFD),
        libc::FD_CLOEXEC,
        on != 0,
    )
}

/// Sets (`on` ≠ 0) or clears O_NONBLOCK: fcntl(2), F_SETFL. The flag belongs to the open file: every copy of the
/// descriptor sees it, in other processes too. EBADF.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_set_nonblock(fd: c_int, on: c_int) -> i32 {
    set(
        fd,
        (libc::F_GETFL, libc::F_SETFL),
        libc::O_NONBLOCK,
        on != 0,
    )
}

pub(crate) fn fcntl(fd: c_int, command: c_int, argument: c_int) -> i32 {
    // SAFETY: the commands used here take an int.
    narrow(result(unsafe {
        libc::syscall(libc::SYS_fcntl, fd, command, argument)
    }))
}

fn set(fd: c_int, (get, put): (c_int, c_int), flag: c_int, on: bool) -> i32 {
    let flags = fcntl(fd, get, 0);
    if flags < 0 {
        return flags;
    }
    fcntl(fd, put, if on { flags | flag } else { flags & !flag })
}

/// A descriptor of our own, closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Owned(pub c_int);

impl Owned {
    /// Takes what a system call has just returned.
    pub(crate) fn take(ret: libc::c_long) -> Result<Self, i64> {
        let fd = result(ret);
        if fd < 0 {
            Err(fd)
        } else {
            Ok(Self(narrow(fd)))
        }
    }

    /// Hands it to the caller of the library.
    pub(crate) fn give(self) -> i64 {
        let fd = self.0;
        core::mem::forget(self);
        i64::from(fd)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        aerie_close(self.0);
    }
}
