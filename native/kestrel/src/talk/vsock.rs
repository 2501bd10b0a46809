//! Connections to and from the host (vsock(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aerie_protocol::{HOST_CID, PORT};

use crate::sys::{check, own};

/// `sizeof(struct sockaddr_vm)`.
const ADDRESS_BYTES: libc::socklen_t = 16;
const _: () = assert!(size_of::<libc::sockaddr_vm>() == 16);
/// Connections that may wait to be accepted: more than may be served at once, so that one too many is told so by us and not reset by the kernel.
const BACKLOG: libc::c_int = 1024;
/// `AF_VSOCK` in the width of the field.
const FAMILY: libc::sa_family_t = 40;
const _: () = assert!(libc::AF_VSOCK == 40);

fn address(cid: u32) -> libc::sockaddr_vm {
    // SAFETY: sockaddr_vm is plain integers; zero is a value of it.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = FAMILY;
    address.svm_cid = cid;
    address.svm_port = PORT;
    address
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: socket touches no memory of ours.
    own(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
}

/// Calls the daemon: CID 2, port 1024. The kernel gives up after two seconds.
pub fn connect_host() -> io::Result<OwnedFd> {
    let fd = socket()?;
    let address = address(HOST_CID);
    // SAFETY: a valid sockaddr_vm and its size.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) })?;
    Ok(fd)
}

/// Listens on port 1024 of every CID of this guest.
pub fn listen() -> io::Result<OwnedFd> {
    let fd = socket()?;
    let address = address(libc::VMADDR_CID_ANY);
    // SAFETY: a valid sockaddr_vm and its size.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) })?;
    // SAFETY: listen touches no memory of ours.
    check(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) })?;
    Ok(fd)
}

/// Accepts one connection and says whose it is: only the host's CID may speak to us. Without this check a guest with
/// vsock loopback would give each of its users a root shell.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, u32)> {
    let mut peer = address(0);
    let mut bytes = ADDRESS_BYTES;
    // SAFETY: room for a sockaddr_vm, and its size.
    let fd = own(unsafe {
        libc::accept4(
            listener.as_fd().as_raw_fd(),
            (&raw mut peer).cast(),
            &raw mut bytes,
            libc::SOCK_CLOEXEC,
        )
    })?;
    Ok((fd, peer.svm_cid))
}
