//! The calls on Unix sockets that the standard library does not have, none of which blocks.

use std::{
    io,
    mem::{offset_of, size_of},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
};

/// Longest path of a Unix socket without its NUL, bytes (`sun_path` of unix(7) is 108).
pub(crate) const PATH_BYTES_MAX: usize = 107;

/// Connects to the socket at `path` without waiting: a full backlog is `WouldBlock`, and nothing tells when it is not.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > PATH_BYTES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all-zero is a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let len = libc::socklen_t::try_from(offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1)
        .map_err(io::Error::other)?;

    // SAFETY: no pointers; the result is checked.
    let fd = unsafe {
        libc::socket(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            0,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just made and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `address` is valid for `len` bytes, which is no more than its size (107 bytes of path and the NUL fit).
    if unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd.into())
}

/// sendmsg(2) without SIGPIPE. EINTR cannot come from a call that does not wait.
///
/// # Safety
/// Every vector is readable for its length during the call.
pub(crate) unsafe fn send(fd: RawFd, vectors: &[libc::iovec]) -> io::Result<usize> {
    let message = message(vectors);
    // SAFETY: `message` points to `vectors`, which live through the call; the caller vouches for what they point to.
    let sent = unsafe {
        libc::sendmsg(
            fd,
            &raw const message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// recvmsg(2); 0 is the end of the stream where the vectors are not empty. File descriptors that come along are not taken.
///
/// # Safety
/// Every vector is writable for its length during the call, and nothing has a reference into it.
pub(crate) unsafe fn receive(fd: RawFd, vectors: &[libc::iovec]) -> io::Result<usize> {
    let mut message = message(vectors);
    // SAFETY: as in `send`.
    let received = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Sends plain bytes.
pub(crate) fn send_bytes(fd: RawFd, parts: [&[u8]; 2]) -> io::Result<usize> {
    let vectors = parts.map(|part| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    });
    // SAFETY: both vectors are borrowed slices.
    unsafe { send(fd, &vectors) }
}

/// Receives plain bytes; with `MSG_PEEK` in `flags` they stay in the socket.
pub(crate) fn receive_bytes(fd: RawFd, into: &mut [u8], flags: i32) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a mutable slice.
    let received = unsafe {
        libc::recv(
            fd,
            into.as_mut_ptr().cast(),
            into.len(),
            flags | libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// read(2) of a descriptor that is no socket.
pub(crate) fn read(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a mutable slice.
    let read = unsafe { libc::read(fd, into.as_mut_ptr().cast(), into.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

fn message(vectors: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: all-zero is a valid `msghdr`: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    // The type of the field differs between glibc (usize) and musl (i32); `Buffers` keeps to 1,024 vectors.
    #[allow(clippy::useless_conversion)]
    let count = vectors.len().try_into().unwrap_or(0);
    message.msg_iovlen = count;
    message
}

const _: () = assert!(
    size_of::<libc::sockaddr_un>() > offset_of!(libc::sockaddr_un, sun_path) + PATH_BYTES_MAX
);
